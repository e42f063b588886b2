"""The constraints of several edits as one function: the inputs of all are one batch of the model.

The rows of the first edit come first, as many for each, so that [`EditGroups`] can compute each edit's with its own
parameters. What the rows are padded with counts for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from editable_hf.core.functional import FunctionalModel, widened

if TYPE_CHECKING:
    from editable_hf.core.constraints import ClassConstraint, SequenceConstraint
    from editable_hf.core.continuations import ContinuationConstraint

IGNORE_INDEX = -100


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the log-probability of each token, `(num_rows, length)`; 0 where padded."""
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE_INDEX)


class SequenceBatch:
    """`l_e` of each of several [`SequenceConstraint`]s, `(num_edits,)`, from one pass over all their sequences.

    Args:
        constraints: Their length penalties must be the same.
    """

    def __init__(self, constraints: Sequence[SequenceConstraint]):
        self.made_from = constraints  # kept, as batches are found by the ids of these
        longest = max(each.inputs["attention_mask"].shape[1] for each in constraints)
        self.inputs = dict(constraints[0].inputs)
        if len(constraints) > 1:
            self.inputs = {
                name: torch.cat([_padded(each.inputs[name], longest, 0) for each in constraints])
                for name in self.inputs
            }
        labels = [each.labels for each in constraints]
        self.decoder_input_ids = _even_rows([each.decoder_input_ids for each in constraints], 0)
        self.margins = _Margins(labels, constraints[0].length_penalty)

    def num_logits(self, model: nn.Module) -> int:
        """How many numbers `model` gives in one pass."""
        return self.margins.labels.numel() * vocabulary_size(model)

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        hidden = model.encode(params, **self.inputs)  # (num_edits, source_length, hidden)
        inputs, _ = model.once(("all", id(self), id(hidden)), lambda: (self._decoder_inputs(model, hidden), hidden))
        return self.margins(widened(model(params, **inputs).logits))

    def _decoder_inputs(self, model: FunctionalModel, hidden: Tensor) -> dict[str, object]:
        """The same objects at every call, so that the model is replayed."""
        size = len(self.decoder_input_ids) // len(hidden)

        def spread(values: Tensor) -> Tensor:  # each edit's over its rows
            return values.unsqueeze(1).expand(-1, size, *values.shape[1:]).flatten(0, 1)

        return {
            "encoder_outputs": model.encoder_outputs(spread(hidden)),
            "attention_mask": spread(self.inputs["attention_mask"]),
            "decoder_input_ids": self.decoder_input_ids,
            "use_cache": False,
        }


class ContinuationBatch:
    """`l_e` of each of several [`ContinuationConstraint`]s, `(num_edits,)`, from one pass over all continuations."""

    def __init__(self, constraints: Sequence[ContinuationConstraint]):
        self.inputs = {
            "input_ids": _even_rows([each.input_ids for each in constraints], 0),
            "attention_mask": _even_rows([each.attention_mask for each in constraints], 0),
            "use_cache": False,
        }
        self._first = min(each.prompt_length for each in constraints)
        self.margins = _Margins([each.labels[:, self._first :] for each in constraints])

    def num_logits(self, model: nn.Module) -> int:
        """How many numbers `model` gives in one pass."""
        return self.inputs["input_ids"].numel() * vocabulary_size(model)

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        logits = model(params, **self.inputs).logits
        return self.margins(widened(logits[:, self._first - 1 : -1]))


class ClassBatch:
    """`l_e` of each of several [`ClassConstraint`]s, `(num_edits,)`, whose inputs have the same shapes."""

    def __init__(self, constraints: Sequence[ClassConstraint]):
        first = constraints[0].inputs
        self.inputs = {name: torch.cat([each.inputs[name] for each in constraints]) for name in first}
        self._targets = [each.target for each in constraints]

    def num_logits(self, model: nn.Module) -> int:
        """How many numbers `model` gives in one pass: of classes always few."""
        return 0

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        logits = widened(model(params, **self.inputs).logits).unflatten(0, (len(self._targets), -1))
        is_target = model.once(("targets", id(self)), lambda: self._is_target(logits))
        others = logits.masked_fill(is_target, -torch.inf)  # (num_edits, num_examples, num_classes)
        return (others.amax(2) - logits.masked_fill(~is_target, -torch.inf).amax(2)).amax(1)

    def _is_target(self, logits: Tensor) -> Tensor:
        for target in self._targets:
            check_class(target, logits.shape[-1])
        targets = torch.tensor(self._targets, device=logits.device).view(-1, 1, 1)
        return torch.arange(logits.shape[-1], device=logits.device) == targets


def vocabulary_size(model: nn.Module) -> int:
    """How many logits a language model gives for each token."""
    return model.get_output_embeddings().weight.shape[0]


def check_class(target: int, num_classes: int) -> None:
    """Raises `ValueError` for a class that the model does not have."""
    if not 0 <= target < num_classes:
        raise ValueError(f"`target` must be a class from 0 to {num_classes - 1}, got {target}.")


class _Margins:
    """Of each edit the largest score of its alternatives less that of its target, `(num_edits,)`.

    Only the target and the alternative that attains the maximum have a gradient; the logits of the others are not
    kept for the way back.

    Args:
        labels: Of each edit, `(1 + num_alternatives, length)`, row 0 the target.
        length_penalty: See [`SequenceConstraint`].
    """

    def __init__(self, labels: Sequence[Tensor], length_penalty: float = 0.0):
        self.labels = _even_rows(labels, IGNORE_INDEX)
        self._count, size = len(labels), len(self.labels) // len(labels)
        self._targets = torch.arange(0, len(self.labels), size, device=self.labels.device)
        self._signs = torch.full((len(self.labels), 1), -1.0, device=self.labels.device)
        self._signs[::size] = 1.0
        self._length_penalty = length_penalty

    def __call__(self, logits: Tensor) -> Tensor:
        weights = self._signs.to(logits.dtype)  # (num_rows, 1), what the loss of a token counts
        if self._length_penalty != 0:
            lengths = (self.labels != IGNORE_INDEX).sum(1, keepdim=True).to(logits.dtype)
            weights = weights / lengths**self._length_penalty
        with torch.no_grad():
            scores = (token_losses(logits, self.labels) * weights).sum(1).view(self._count, -1)
            best = scores[:, 1:].argmax(1) + self._targets + 1
            pairs = torch.cat([self._targets, best])
        losses = token_losses(logits[pairs], self.labels[pairs]) * weights[pairs]
        return losses.view(2, self._count, -1).sum((0, 2))


def _padded(rows: Tensor, length: int, value: int) -> Tensor:
    """Rows with columns added on the right, up to `length`."""
    missing = length - rows.shape[1]
    if missing == 0:
        return rows
    return F.pad(rows, (0, missing), value=value)


def _even_rows(groups: Sequence[Tensor], value: int) -> Tensor:
    """The rows of all groups, as many of each; where one has fewer, its last is there several times.

    Args:
        groups: Each `(num_rows, length)`.
        value: For the columns that are missing.
    """
    size, length = (max(group.shape[dim] for group in groups) for dim in (0, 1))
    padded = []
    for group in groups:
        missing = size - len(group)
        group = torch.cat([group, group[-1:].expand(missing, -1)]) if missing else group
        padded.append(_padded(group, length, value))
    return torch.cat(padded)
