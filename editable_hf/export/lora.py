"""An edit as a LoRA adapter of peft, so that a server can switch it on for one request and off for the next.

What an edit adds to a matrix is itself a matrix. Its singular value decomposition gives the two factors that LoRA
wants: all of it where every singular value is kept, and the nearest matrix of rank r where the largest r are.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Conv1D, PreTrainedModel

from editable_hf.versions import require_extra


@dataclass(frozen=True)
class LoraExport:
    """What an adapter holds.

    Attributes:
        ranks: Rank of the two factors, for each module that LoRA carries; the change of its bias is exact.
        whole: Modules that LoRA does not fit, such as layer norms: the adapter holds them as they are with the edit.
        relative_error: What the factors miss, by what the edit adds to these matrices, both as Frobenius norms.
        num_bytes: Of the adapter's weights.
    """

    ranks: dict[str, int]
    whole: list[str]
    relative_error: float
    num_bytes: int


def save_lora(
    model: PreTrainedModel,
    params: Mapping[str, Tensor],
    folder: str | os.PathLike,
    *,
    rank: int | None = None,
    base_model: str | None = None,
) -> LoraExport:
    """Writes an edit as an adapter that `PeftModel.from_pretrained(model, folder)` loads.

    Args:
        model: The model without the edit; it is left as it was.
        params: Edited parameters by qualified name, e.g. `EditResult.params`.
        folder: New folder for the adapter.
        rank: Rank of the factors at most. By default the full one of each matrix, which loses nothing but rounding.
        base_model: What the adapter names as its model, by default where the model was loaded from.

    Raises:
        ImportError: Without peft, naming the extra.
        ValueError: If the rank is below 1, or parameters belong to no module that an adapter can carry: tied ones,
            and those of a module that holds other modules too.
    """
    require_extra("peft", "export")
    if rank is not None and rank < 1:
        raise ValueError(f"Expected a rank of at least 1, got {rank}; leave it out for an exact adapter.")
    before = dict(model.named_parameters())
    edits = {name: value for name, value in params.items() if not torch.equal(value, before[name])}
    matrices, whole = _by_module(model, edits)
    with_bias = any(layer.bias is not None for layer in matrices.values())
    state: dict[str, Tensor] = {}
    ranks, missed, added = {}, 0.0, 0.0
    for module, layer in matrices.items():
        delta = _delta(before, edits, f"{module}.weight")
        delta = delta.T if isinstance(layer, Conv1D) else delta
        a, b = (factor.to(_kept_dtype(layer.weight)) for factor in _factors(delta, rank))
        ranks[module] = len(a)
        missed += float((delta - b.double() @ a.double()).square().sum())
        added += float(delta.square().sum())
        state |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        if with_bias:  # peft gives one to all or to none
            bias = b.new_zeros(len(b)) if layer.bias is None else _delta(before, edits, f"{module}.bias").to(b.dtype)
            state[f"{module}.lora_B.bias"] = bias
    for module in whole:
        kept = model.get_submodule(module).state_dict()
        state |= {f"{module}.{key}": edits.get(f"{module}.{key}", value) for key, value in kept.items()}
    path = Path(folder)
    options = {"lora_bias": with_bias, "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in matrices.values())}
    options |= {"base_model_name_or_path": base_model or model.config.name_or_path, "modules_to_save": whole or None}
    _lora_config(model, ranks, **options).save_pretrained(str(path))
    weights = {f"base_model.model.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})
    size = (path / "adapter_model.safetensors").stat().st_size
    return LoraExport(ranks, whole, (missed / added) ** 0.5 if added else 0.0, size)


def _by_module(model: nn.Module, edits: Mapping[str, Tensor]) -> tuple[dict[str, nn.Module], list[str]]:
    """The modules that hold the edited parameters: matrices for LoRA, and others to be saved whole."""
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    matrices, whole, refused = {}, set(), []
    for name in edits:
        module, _, _ = name.rpartition(".")
        layer = model.get_submodule(module)
        if holders[id(model.get_parameter(name))] > 1 or any(layer.children()):
            refused.append(name)
        elif isinstance(layer, nn.Linear | Conv1D):
            matrices[module] = layer
        else:
            whole.add(module)
    if refused:
        raise ValueError(
            f"An adapter cannot carry {', '.join(refused)}: tied to another place of the model, or of a module that "
            "holds others. Make the patch with other --layers, or export the whole model (`editable-hf apply`)."
        )
    return matrices, sorted(whole)


def _delta(before: Mapping[str, Tensor], edits: Mapping[str, Tensor], name: str) -> Tensor:
    old = before[name].detach().double()
    return edits[name].detach().double() - old if name in edits else torch.zeros_like(old)


def _factors(delta: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """A `(rank, in)` and B `(out, rank)` whose product B A is nearest to the `(out, in)` matrix."""
    u, s, v = torch.linalg.svd(delta, full_matrices=False)
    root = s[:rank].sqrt()  # half for each, so that neither is rounded more than the other
    return root[:, None] * v[:rank], u[:, :rank] * root


def _kept_dtype(weight: Tensor) -> torch.dtype:
    # As peft does with adapters of half-precision models: in half precision the factors would be far from exact.
    return torch.promote_types(weight.dtype, torch.float32)


def _lora_config(model: PreTrainedModel, ranks: dict[str, int], **options: Any):
    from peft import LoraConfig

    task = None
    if model.can_generate():
        task = "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"
    highest = max(ranks.values(), default=1)
    return LoraConfig(
        task_type=task,
        target_modules=list(ranks),
        r=highest,
        lora_alpha=highest,  # as the rank, everywhere: peft multiplies by their quotient
        rank_pattern=ranks,
        alpha_pattern=ranks,
        inference_mode=True,
        **options,
    )
