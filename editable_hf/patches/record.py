"""Which patches a model carries: a record in its config, checked against the bits of its parameters.

`save_pretrained` writes the config and `from_pretrained` reads it, so a patched checkpoint says by itself what was
done to it, in plain `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel

from editable_hf.patches.encoding import digest, short

RECORD = "editable_patches"


def applied_patches(model: PreTrainedModel) -> list[str]:
    """Fingerprints of the patches that `model` carries, the oldest first; empty for an unpatched model.

    The record is in `model.config.editable_patches`. What is returned is checked: every tensor that these patches
    touch has the very bits that they left.

    Raises:
        TypeError: If `model` is no model of `transformers`.
        ValueError: If the config says that the model is patched, but its parameters are not as the patches left them.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"Expected a model of `transformers`, whose config records its patches, got {type(model).__name__}; "
            "unwrap the model first (`accelerator.unwrap_model(model)`; for peft `model.get_base_model()`, which "
            "has the adapters)."
        )
    record = getattr(model.config, RECORD, None)
    if record is None:
        return []
    params = dict(model.named_parameters())
    wrong = [name for name, value in record["tensors"].items() if name not in params or digest(params[name]) != value]
    if wrong:
        raise ValueError(
            f"The config of this {type(model).__name__} says that {len(record['applied'])} patches are applied (the "
            f"last is {short(record['applied'][-1])}), but {len(wrong)} of the {len(record['tensors'])} tensors that "
            f"they touch are not as they left them, {wrong[0]!r} for one: the model was trained, edited, converted to "
            f"another dtype or built anew since. Load the patched checkpoint again as it was saved, or forget its "
            f"patches: `del model.config.{RECORD}`."
        )
    return list(record["applied"])


def recorded_tensors(model: PreTrainedModel) -> dict[str, str]:
    """[`digest`] of each tensor that was touched, by name, as the record has it."""
    record = getattr(model.config, RECORD, None)
    return {} if record is None else dict(record["tensors"])


def write_record(model: PreTrainedModel, applied: Sequence[str], digests: Mapping[str, str]) -> None:
    """Records the stack of patches and the state of the tensors they touched; none, if no patch is left."""
    if applied:
        setattr(model.config, RECORD, {"applied": list(applied), "tensors": dict(digests)})
    elif getattr(model.config, RECORD, None) is not None:
        delattr(model.config, RECORD)
