"""Edits of translations that decoding confirms.

`l_e <= 0` says that the target beats the alternatives that were given. The edited model may still prefer a translation
that was not among them; then that becomes an alternative too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.constraints import Constraint, JointConstraint
from editable_hf.core.editing import EditResult, edit, edited
from editable_hf.core.editors import Editor
from editable_hf.core.functional import eval_mode
from editable_hf.data.requests import request_constraint, strip_ids

Request = Mapping[str, Any]


class VerifiedEdit(NamedTuple):
    """What an edit did, and what the edited model then says.

    Attributes:
        result: Of the last round; an edit of the unedited model like any other.
        requests: With every alternative that was met, so that one edit with them repeats the result.
        outputs: What the edited model decodes for each source.
        verified: Whether each output is the target.
        num_rounds: How often the model was edited anew.
    """

    result: EditResult
    requests: list[dict[str, Any]]
    outputs: list[str]
    verified: list[bool]
    num_rounds: int

    @property
    def all_verified(self) -> bool:
        return all(self.verified)


def verified_edit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[Request],
    editor: Editor,
    layers: str | Iterable[str],
    *,
    max_steps: int = 10,
    max_rounds: int = 5,
    length_penalty: float | None = None,
    reduction: str = "max",
) -> VerifiedEdit:
    """Edits until the model, decoding as its generation config says, gives the targets.

    A round edits the unedited model and decodes. An output that is neither the target nor an alternative becomes one
    for the next round. It ends when all targets are decoded, an edit fails, or no round would be different: a target
    that beats all alternatives and is not decoded all the same is one that beam search does not find.

    Args:
        model: An encoder-decoder model; it is left as it was.
        tokenizer: Its tokenizer.
        requests: Rows of an edit-request dataset; several are satisfied by one edit.
        editor: How to edit.
        layers: What may move.
        max_steps: k in Eq. 1, for each round.
        max_rounds: Rounds at most.
        length_penalty: Exponent of the length normalisation in `l_e`. By default the generation config's own, with
            which `l_e <= 0` speaks of the scores that beam search compares; 0 for greedy decoding.
        reduction: How several constraints are joined, see [`JointConstraint`].

    Raises:
        ValueError: Without a request, if `max_rounds` is below 1, or for a request that cannot be edited for.
    """
    if not requests or max_rounds < 1:
        raise ValueError(
            f"Expected at least one request and `max_rounds` of at least 1, got {len(requests)} and {max_rounds}."
        )
    if length_penalty is None:
        generation = model.generation_config
        length_penalty = generation.length_penalty if generation.num_beams > 1 else 0.0
    requests = [dict(request) for request in requests]
    for num_rounds in range(1, max_rounds + 1):
        constraint = joint_constraint(requests, model, length_penalty, reduction)
        result = edit(model, constraint, editor, layers, max_steps)
        with edited(model, result):
            decoded = [decode(model, tokenizer, request["source_ids"]) for request in requests]
        verified = [ids == list(request["target_ids"]) for ids, request in zip(decoded, requests, strict=True)]
        added = result.success and num_rounds < max_rounds and _add_alternatives(requests, decoded, verified)
        if not added:
            break
    outputs = [tokenizer.decode(ids, skip_special_tokens=True) for ids in decoded]
    return VerifiedEdit(result, requests, outputs, verified, num_rounds)


def joint_constraint(
    requests: Sequence[Request], model: PreTrainedModel, length_penalty: float = 0.0, reduction: str = "max"
) -> Constraint:
    """The constraint that an edit for all of `requests` must satisfy, on the model's device."""
    constraints = [request_constraint(request, model, length_penalty).to(model.device) for request in requests]
    return constraints[0] if len(constraints) == 1 else JointConstraint(constraints, reduction)


@torch.no_grad()
def decode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source_ids: Sequence[int]) -> list[int]:
    """Token ids that the model as it stands gives for one source, with its own generation config."""
    inputs = torch.tensor([list(source_ids)], device=model.device)
    with eval_mode(model):
        (row,) = model.generate(inputs, attention_mask=torch.ones_like(inputs), num_return_sequences=1)
    return strip_ids(row, tokenizer)


def _add_alternatives(requests: list[dict[str, Any]], decoded: list[list[int]], verified: list[bool]) -> bool:
    """Whether any request got an alternative that it did not have."""
    added = False
    for request, ids, right in zip(requests, decoded, verified, strict=True):
        known = [list(alternative) for alternative in request["alternatives"]]
        if not right and ids and ids not in known:
            request["alternatives"] = [*known, ids]
            added = True
    return added
