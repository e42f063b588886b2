"""The constraint of a decoder-only language model: after a prompt, the target is likelier than what it says now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from editable_hf.core.constraint_batch import IGNORE_INDEX, token_losses, vocabulary_size
from editable_hf.core.constraints import (
    MOST_LOGITS,
    Constraint,
    JointConstraint,
    WithMargin,
    distinct_rows,
    without_margin,
)
from editable_hf.core.functional import FunctionalModel, widened
from editable_hf.core.prefix_trie import head_from


@dataclass(frozen=True)
class ContinuationConstraint:
    """`l_e = max_i log p(y_i | prompt) - log p(target | prompt)` over alternative continuations `y_i`, in nats.

    The prompt itself does not count, only what follows it. Several wordings of a prompt are several constraints: give
    [`JointConstraint`] a list.

    Build it with [`ContinuationConstraint.from_ids`], which checks what it is given.

    Args:
        input_ids: `(1 + num_alternatives, length)`, the prompt and a continuation in each row, row 0 the target's.
            Padded on the right, where a causal model does not look.
        attention_mask: Same shape, 0 where padded.
        labels: Same shape, -100 at the prompt and where padded.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @classmethod
    def from_ids(
        cls,
        prompt: Sequence[int],
        target: Sequence[int],
        alternatives: Sequence[Sequence[int]],
        *,
        pad_token_id: int,
        max_length: int | None = None,
    ) -> ContinuationConstraint:
        """Builds the constraint from token ids.

        Args:
            prompt: Token ids of the prompt, at least one.
            target: Token ids of the wanted continuation.
            alternatives: Token ids of the continuations it must beat. The target itself and repetitions are removed.
            pad_token_id: Fills the rows that are shorter.
            max_length: Most tokens that the model takes, if it has a limit.

        Raises:
            ValueError: If the prompt or the target is empty, a row is too long, or no alternative is left.
        """
        prompt = list(prompt)
        if not prompt:
            raise ValueError("The edit's prompt is empty: give at least one token.")
        rows = distinct_rows(target, alternatives)
        length = len(prompt) + max(map(len, rows))
        if max_length is not None and length > max_length:
            raise ValueError(
                f"Prompt and continuation have {length} tokens, but the model takes at most {max_length}; shorten "
                "them."
            )
        start = torch.tensor(prompt)
        inputs, labels = target_batch([Fact(start, torch.tensor(ids)) for ids in rows], pad_token_id)
        return cls(inputs["input_ids"], inputs["attention_mask"], labels)

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        binding = 1
        if len(self.labels) > 2:  # only the target and the alternative that attains the maximum have a gradient
            with torch.no_grad():
                binding += int(self.scores(model, params)[1:].argmax())
        # With `self`, whose id no other constraint may get while the pair is found by it.
        pair, _ = model.once(("pair", id(self), binding), lambda: (self._rows([0, binding]), self))
        target, alternative = pair.scores(model, params)
        return alternative - target

    def scores(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities of all continuations, each a sum over its tokens.

        Args:
            model: The model as a function of its edited parameters.
            params: The parameters tried.

        Returns:
            `(1 + num_alternatives,)`, nats.
        """
        return _log_probs(model, params, self._batch, self.prompt_length)

    @cached_property
    def prompt_length(self) -> int:
        """Tokens of the prompt; looked at once, as a GPU waits for it."""
        return int((self.labels[0] == IGNORE_INDEX).to(torch.uint8).argmin())

    @cached_property
    def _batch(self) -> TargetBatch:
        return TargetBatch({"input_ids": self.input_ids, "attention_mask": self.attention_mask}, self.labels)

    @cached_property
    def facts(self) -> list[Fact]:
        """The prompt with each continuation, the target first."""
        rows = zip(self.input_ids, self.attention_mask == 1, self.labels, strict=True)
        return [Fact(ids[real & (label == IGNORE_INDEX)], ids[label != IGNORE_INDEX]) for ids, real, label in rows]

    def _rows(self, rows: list[int]) -> ContinuationConstraint:
        """Some of the continuations, without columns that are padding in all of them."""
        length = int(self.attention_mask[rows].sum(1).max())
        return ContinuationConstraint(
            *(tensor[rows, :length] for tensor in (self.input_ids, self.attention_mask, self.labels))
        )

    def to(self, device: torch.device) -> ContinuationConstraint:
        """A copy with its tensors on `device`."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
        )


class Fact(NamedTuple):
    """A prompt and what should follow it, token ids `(prompt_length,)` and `(target_length,)`.

    A translation is one, too: what follows the decoder's first token, given a `source`, `(source_length,)`.
    """

    prompt: Tensor
    target: Tensor
    source: Tensor | None = None


class TargetBatch(NamedTuple):
    """Prompts with their targets, padded on the right; all `(num_rows, length)`.

    Attributes:
        inputs: `input_ids` and `attention_mask`, of the sources where there are some, beside `decoder_input_ids`.
        labels: -100 where nothing is asked for.
    """

    inputs: dict[str, Tensor]
    labels: Tensor


def target_batch(facts: Sequence[Fact], pad_token_id: int = 0) -> TargetBatch:
    """The batch of some facts, all with a source or none; a fact without target is a prompt alone."""
    ids = [torch.cat([fact.prompt, fact.target]) for fact in facts]
    labels = [torch.cat([torch.full_like(fact.prompt, IGNORE_INDEX), fact.target]) for fact in facts]
    sources = [fact.source for fact in facts if fact.source is not None]
    read = sources or ids
    mask = pad_sequence([torch.ones_like(row) for row in read], batch_first=True)
    inputs = {"input_ids": pad_sequence(read, batch_first=True, padding_value=pad_token_id), "attention_mask": mask}
    if sources:
        inputs["decoder_input_ids"] = pad_sequence(ids, batch_first=True)
    return TargetBatch(inputs, pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX))


def _log_probs(model: FunctionalModel, params: Mapping[str, Tensor], batch: TargetBatch, first: int) -> Tensor:
    """Log-probability of each row's target, `(num_rows,)`, nats; none has a token before position `first`."""
    labels = batch.labels[:, first:]
    with head_from(model.model, first - 1):
        logits = model(params, **batch.inputs, use_cache=False).logits
    return -token_losses(widened(logits[:, -1 - labels.shape[1] : -1]), labels).sum(1)


class JointContinuations(JointConstraint):
    """[`JointConstraint`] by the mean whose continuations run as one batch: the same value in fewer, larger calls.

    Args:
        constraints: [`ContinuationConstraint`]s or [`WithMargin`] of such, on one device.
    """

    def __init__(self, constraints: Sequence[Constraint]):
        super().__init__(constraints, "mean")

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        # With `self`, whose id no other constraint may get while the batches are found by it.
        batches, _ = model.once(("batches", id(self)), lambda: (self._batches(vocabulary_size(model.model)), self))
        with torch.no_grad():
            rows = torch.cat([_log_probs(model, params, *batch) for batch in batches])
            alternatives = [scores[1:].max(0) for scores in rows.split([len(facts) for facts in self._facts])]
            margins = rows.new_tensor(self._margins)
            values = torch.stack([each.values for each in alternatives]) - rows[self._targets] + margins
            binding = torch.stack([each.indices for each in alternatives]).tolist()
        # Those that hold have no gradient. What is not a number does not hold.
        missed = [index for index, value in enumerate(values.tolist()) if not value <= 0]
        if not missed:
            return values.clamp(min=0).mean()
        chosen = tuple((index, 1 + binding[index]) for index in missed)
        pairs, _ = model.once(("pairs", id(self), chosen), lambda: (self._pairs(chosen), self))
        target, alternative = _log_probs(model, params, *pairs).view(-1, 2).T
        return (alternative - target + margins[missed]).relu().sum() / len(self.constraints)

    @cached_property
    def _facts(self) -> list[list[Fact]]:
        return [without_margin(each).facts for each in self.constraints]

    @cached_property
    def _margins(self) -> list[float]:
        return [each.margin if isinstance(each, WithMargin) else 0.0 for each in self.constraints]

    @cached_property
    def _targets(self) -> list[int]:
        """The row of each target among all rows."""
        return [0, *accumulate(len(facts) for facts in self._facts[:-1])]

    def _batches(self, vocab_size: int) -> list[tuple[TargetBatch, int]]:
        """All rows, as many together as logits may be."""
        facts = [fact for group in self._facts for fact in group]
        length = max(len(fact.prompt) + len(fact.target) for fact in facts)
        size = max(1, MOST_LOGITS // (length * vocab_size))
        return [_with_start(facts[start : start + size]) for start in range(0, len(facts), size)]

    def _pairs(self, chosen: Sequence[tuple[int, int]]) -> tuple[TargetBatch, int]:
        """Target and binding alternative of some constraints, row after row."""
        return _with_start([self._facts[index][row] for index, binding in chosen for row in (0, binding)])


def _with_start(facts: Sequence[Fact]) -> tuple[TargetBatch, int]:
    return target_batch(facts), min(len(fact.prompt) for fact in facts)


def joined(constraints: Sequence[Constraint]) -> Constraint:
    """One constraint that holds when all do.

    By the mean over those that do not hold yet, so that a step is for all of them: with the maximum it is for the
    worst alone, and 25 facts took 75 to 85 steps in place of 14 to 20, for more divergence on text.
    """
    if len(constraints) == 1:
        return constraints[0]
    if all(isinstance(without_margin(each), ContinuationConstraint) for each in constraints):
        return JointContinuations(constraints)
    return JointConstraint(constraints, "mean")
