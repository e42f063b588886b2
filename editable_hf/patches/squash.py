"""Many patches, one above the other, as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from editable_hf.core.editing import EditResult, constraint_value, edited
from editable_hf.evaluation.verified_edit import decoding_length_penalty, joint_constraint
from editable_hf.patches.patch import Patch
from editable_hf.patches.stack import PatchLike, loaded_patches, patched_parameters
from editable_hf.review.terms import terms_of
from editable_hf.training.editor_config import EditorConfig


def squash_patches(model: PreTrainedModel, patches: Sequence[PatchLike], *, encoding: str = "xor") -> Patch:
    """One patch that does what several do together, bit for bit with `encoding="xor"`.

    Its request has those of all of them, and its metrics the terms of their glossaries; `success` says whether all of
    these requests hold together, which later patches may have undone, and `verified` is not known. The editor is that
    of the last one.

    Args:
        model: The model that the first patch was made for; it is left as it was, bit for bit.
        patches: Two or more, in the order in which they are applied.
        encoding: See [`Patch.from_edit`].

    Raises:
        ValueError: If there are fewer than two, they do not fit the model or each other, or they undo each other.

    Example:
        >>> patch = squash_patches(model, ["fixes/1", "fixes/2"])  # doctest: +SKIP
        >>> patch.save_pretrained("fixes/all")  # doctest: +SKIP
    """
    chosen = loaded_patches(patches)
    if len(chosen) < 2:
        raise ValueError(f"Expected two patches or more to make one of, got {len(chosen)}.")
    requests = [
        request
        for patch in chosen
        for request in (patch.request if isinstance(patch.request, list) else [patch.request])
    ]
    before = _value(model, requests)
    params = patched_parameters(model, chosen)
    with edited(model, params):
        after = _value(model, requests)
    success = all(patch.success for patch in chosen) if math.isnan(after) else after <= 0
    last, terms = chosen[-1], [asdict(term) for patch in chosen for term in terms_of(patch.metrics)]
    return Patch.from_edit(
        model,
        EditResult(params, success, sum(patch.num_steps for patch in chosen), None, [before, after]),
        request=requests,
        editor=EditorConfig(last.editor["name"], last.editor["hyperparameters"], inputs=last.inputs),
        layers=list(dict.fromkeys(layer for patch in chosen for layer in patch.layers)),
        base_model=last.base_model,
        metrics={"terms": terms} if terms else None,
        parent=chosen[0].parent,
        encoding=encoding,
    )


def _value(model: PreTrainedModel, requests: Sequence[Any]) -> float:
    """`l_e` of all requests together; not a number where one does not hold its constraint, as those of images."""
    if not all(isinstance(request, dict) and "labels" in request for request in requests):
        return math.nan
    return constraint_value(model, joint_constraint(requests, model, decoding_length_penalty(model)))
