"""Mistakes patched one after another, each patch on top of those before, with a check that these still hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.evaluation.verified_edit import VerifiedEdit, decode, verified_edit
from editable_hf.patches.patch import Patch
from editable_hf.patches.stack import apply_patches, revert_patches
from editable_hf.training.editor_config import EditorConfig

_KEYS = ("source", "target", "input_ids", "labels", "alternatives", "margin")


class PatchStep(NamedTuple):
    """One patch of a sequence.

    Attributes:
        patch: `None` where the edit failed, or nothing had to be edited.
        success: Whether `l_e <= 0` holds.
        verified: Whether decoding gives the target.
        broken: Positions of earlier requests whose target was decoded before this patch and is not any more.
    """

    patch: Patch | None
    success: bool
    verified: bool
    broken: list[int]


def patch_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a patch keeps of a request: enough to check it, and to repeat the edit."""
    return {key: request[key] for key in _KEYS}


def patch_of(model: PreTrainedModel, outcome: VerifiedEdit, config: EditorConfig, **options: Any) -> Patch | None:
    """The patch of an edit; `None` if it failed or changed nothing. `options` are those of [`Patch.from_edit`]."""
    if not outcome.result.success or outcome.result.num_steps == 0:
        return None
    return Patch.from_edit(
        model,
        outcome.result,
        request=[patch_request(each) for each in outcome.requests],
        editor=config,
        layers=config.layers,
        verified=outcome.all_verified,
        **options,
    )


def configured_edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    config: EditorConfig,
    max_rounds: int,
) -> VerifiedEdit:
    """[`verified_edit`] with the editor, the layers and the most steps that a configuration gives."""
    editor, max_steps = config.build_editor(), config.max_steps
    return verified_edit(model, tokenizer, requests, editor, config.layers, max_steps=max_steps, max_rounds=max_rounds)


def patch_one_after_another(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Mapping[str, Any]],
    config: EditorConfig,
    *,
    max_rounds: int = 5,
    base_model: str | None = None,
    encoding: str = "xor",
    progress: str | None = "patches",
) -> list[PatchStep]:
    """Makes a patch for each request, on top of all before, and looks after each whether the earlier ones still hold.

    The model is left as it was, bit for bit; apply the patches that you want to keep, in this order.

    Args:
        model: An encoder-decoder model.
        tokenizer: Its tokenizer.
        requests: Rows of an edit-request dataset.
        config: The editor, its layers and its most steps.
        max_rounds: See [`verified_edit`].
        base_model: See [`Patch.from_edit`].
        encoding: See [`Patch.from_edit`].
        progress: Title of the progress bar, none if `None`.
    """
    steps: list[PatchStep] = []
    holding: set[int] = set()
    num_applied = 0
    try:
        for index, request in enumerate(tqdm(requests, desc=progress, disable=progress is None, unit="patch")):
            outcome = configured_edit(model, tokenizer, [request], config, max_rounds)
            patch = patch_of(model, outcome, config, base_model=base_model, encoding=encoding)
            if patch is not None:
                apply_patches(model, patch)
                num_applied += 1
            broken = [] if patch is None else sorted(_broken(model, tokenizer, requests, holding))
            holding -= set(broken)
            if outcome.all_verified:
                holding.add(index)
            steps.append(PatchStep(patch, outcome.result.success, outcome.all_verified, broken))
    finally:
        revert_patches(model, num_applied)
    return steps


def _broken(model, tokenizer, requests: Sequence[Mapping[str, Any]], holding: set[int]) -> list[int]:
    return [index for index in holding if decode(model, tokenizer, requests[index]) != list(requests[index]["labels"])]
