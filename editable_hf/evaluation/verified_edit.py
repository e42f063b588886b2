"""Edits that free decoding confirms, not only `l_e`.

`l_e <= 0` says that the target beats the alternatives that were given. The edited model may still say something else:
a translation that was not among them, which then becomes an alternative too, or one that is beaten already, because
beam search lost the target on the way. Then the target must win by a margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.constraints import Constraint, WithMargin
from editable_hf.core.continuations import joined
from editable_hf.core.editing import AnyEditor, EditResult, constraint_value, edit, edited
from editable_hf.core.functional import eval_mode
from editable_hf.core.parts import is_decoder_only
from editable_hf.data.continuations import continue_ids
from editable_hf.data.requests import request_constraint, strip_ids

Request = Mapping[str, Any]

# So that a target that wins by next to nothing is still moved; nats.
_LEAST_MARGIN = 0.1


class VerifiedEdit(NamedTuple):
    """What an edit did, and what the edited model then says.

    Attributes:
        result: Of the last round that reached its goal; an edit of the unedited model like any other.
        requests: With every alternative that was met and the `margin` by which the target must win (0 at first), so
            that one edit with them repeats the result, see [`joint_constraint`].
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
    editor: AnyEditor,
    layers: str | Iterable[str],
    *,
    max_steps: int = 10,
    max_rounds: int = 5,
    length_penalty: float | None = None,
) -> VerifiedEdit:
    """Edits until the model, decoding as its generation config says, gives the targets.

    A round edits the unedited model and decodes. An output that is neither the target nor an alternative becomes one
    for the next round; where the output is one already, the target's margin over all of them grows. It ends when all
    targets are decoded, an edit fails, or after `max_rounds`.

    Args:
        model: An encoder-decoder or decoder-only model; it is left as it was.
        tokenizer: Its tokenizer.
        requests: Rows of an edit-request dataset; several are satisfied by one edit.
        editor: How to edit.
        layers: What may move.
        max_steps: k in Eq. 1, for each round.
        max_rounds: Rounds at most.
        length_penalty: Exponent of the length normalization in `l_e`. By default the generation config's own, with
            which `l_e <= 0` speaks of the scores that beam search compares; 0 for greedy decoding.

    Raises:
        ValueError: Without a request, if `max_rounds` is below 1, or for a request that cannot be edited for.
    """
    if not requests or max_rounds < 1:
        raise ValueError(
            f"Expected at least one request and `max_rounds` of at least 1, got {len(requests)} and {max_rounds}."
        )
    if length_penalty is None:
        length_penalty = decoding_length_penalty(model)
    requests, outcome = [{**request, "margin": 0.0} for request in requests], None
    for num_rounds in range(1, max_rounds + 1):
        constraint = joint_constraint(requests, model, length_penalty)
        result = edit(model, constraint, editor, layers, max_steps)
        if outcome is not None and not result.success:
            return outcome._replace(num_rounds=num_rounds)
        with edited(model, result):
            decoded = decode_all(model, tokenizer, requests)
        verified = [ids == list(request["labels"]) for ids, request in zip(decoded, requests, strict=True)]
        outputs = [tokenizer.decode(ids, skip_special_tokens=True) for ids in decoded]
        outcome = VerifiedEdit(result, requests, outputs, verified, num_rounds)
        if all(verified) or not result.success:
            return outcome
        if num_rounds < max_rounds:
            with edited(model, result):
                requests = [
                    request if right else _harder(model, request, ids, length_penalty)
                    for request, ids, right in zip(requests, decoded, verified, strict=True)
                ]
    return outcome


def _harder(model: PreTrainedModel, request: Request, output: list[int], length_penalty: float) -> dict[str, Any]:
    """The request with what the edit that `model` carries has missed: an alternative, or more margin than it has."""
    known = [list(alternative) for alternative in request["alternatives"]]
    if output and output not in known:
        return {**request, "alternatives": [*known, output]}
    constraint = request_constraint(request, model, length_penalty).to(model.device)
    return {**request, "margin": 1.5 * max(0.0, -constraint_value(model, constraint)) + _LEAST_MARGIN}


def decoding_length_penalty(model: PreTrainedModel) -> float:
    """The exponent with which the model's own decoding normalizes scores; 0 for greedy decoding."""
    generation = model.generation_config
    if is_decoder_only(model) or (generation.num_beams or 1) == 1:
        return 0.0
    return 1.0 if generation.length_penalty is None else generation.length_penalty


def joint_constraint(requests: Sequence[Request], model: PreTrainedModel, length_penalty: float = 0.0) -> Constraint:
    """The constraint that an edit for all of `requests` must satisfy, on the model's device; see [`joined`].

    Args:
        requests: With a `margin` where the target must win by more than nothing, in nats (after normalization).
        model: See [`request_constraint`].
        length_penalty: Same.
    """
    constraints = [
        WithMargin(request_constraint(request, model, length_penalty).to(model.device), request.get("margin", 0.0))
        for request in requests
    ]
    return joined(constraints)


def decode_all(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Request]
) -> list[list[int]]:
    """[`decode`] of each request, prompts of a decoder-only model together."""
    if not is_decoder_only(model):
        return [decode(model, tokenizer, request) for request in requests]
    lengths = [len(request["labels"]) for request in requests]
    rows = continue_ids(model, [list(request["input_ids"]) for request in requests], max_new_tokens=max(lengths))
    return [row[:length] for row, length in zip(rows, lengths, strict=True)]


@torch.no_grad()
def decode(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, request: Request) -> list[int]:
    """Token ids that the model as it stands gives for a request's source, decoding freely.

    Of a decoder-only model the greedy continuation, as many tokens as the target has: an answer that begins with the
    target is right. Otherwise the whole output, as the generation config says, but without chance.
    """
    with eval_mode(model):
        if is_decoder_only(model):
            return decode_all(model, tokenizer, [request])[0]
        inputs = torch.tensor([list(request["input_ids"])], device=model.device)
        options = {"num_return_sequences": 1, "do_sample": False}
        (row,) = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), **options)
    return strip_ids(row, tokenizer)
