"""From requests to a patch: the edit that a configuration asks for, and the patch of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.editing import AnyEditor
from editable_hf.evaluation.verified_edit import VerifiedEdit, verified_edit
from editable_hf.patches.patch import Patch
from editable_hf.training.editor_config import EditorConfig

# What a patch keeps of a request: enough to check it, and to repeat the edit.
REQUEST_KEYS = ("source", "target", "input_ids", "labels", "alternatives", "margin")


def patch_of(model: PreTrainedModel, outcome: VerifiedEdit, config: EditorConfig, **options: Any) -> Patch | None:
    """The patch of an edit; `None` if it failed or changed nothing. `options` are those of [`Patch.from_edit`]."""
    if not outcome.result.success or outcome.result.num_steps == 0:
        return None
    return Patch.from_edit(
        model,
        outcome.result,
        request=[{key: request[key] for key in REQUEST_KEYS} for request in outcome.requests],
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
    editor: AnyEditor | None = None,
) -> VerifiedEdit:
    """[`verified_edit`] with the layers, the most steps and, unless one is given, the editor of a configuration."""
    options = {"max_steps": config.max_steps, "max_rounds": max_rounds}
    return verified_edit(model, tokenizer, requests, editor or config.build_editor(), config.layers, **options)
