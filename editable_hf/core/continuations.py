"""The constraint of a decoder-only language model: after a prompt, the target is likelier than what it says now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from editable_hf.core.constraint_batch import IGNORE_INDEX, token_losses
from editable_hf.core.constraints import distinct_rows
from editable_hf.core.functional import FunctionalModel, widened


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
        padding = [length - len(prompt) - len(ids) for ids in rows]
        both = list(zip(rows, padding, strict=True))
        return cls(
            torch.tensor([prompt + ids + [pad_token_id] * pad for ids, pad in both]),
            torch.tensor([[1] * (length - pad) + [0] * pad for pad in padding]),
            torch.tensor([[IGNORE_INDEX] * len(prompt) + ids + [IGNORE_INDEX] * pad for ids, pad in both]),
        )

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
        logits = model(params, input_ids=self.input_ids, attention_mask=self.attention_mask, use_cache=False).logits
        first = self.prompt_length
        return -token_losses(widened(logits[:, first - 1 : -1]), self.labels[:, first:]).sum(1)

    @cached_property
    def prompt_length(self) -> int:
        """Tokens of the prompt; looked at once, as a GPU waits for it."""
        return int((self.labels[0] == IGNORE_INDEX).to(torch.uint8).argmin())

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


def target_batch(facts: Sequence[Fact]) -> TargetBatch:
    """The batch of some facts, all with a source or none; a fact without target is a prompt alone."""
    ids = [torch.cat([fact.prompt, fact.target]) for fact in facts]
    labels = [torch.cat([torch.full_like(fact.prompt, IGNORE_INDEX), fact.target]) for fact in facts]
    sources = [fact.source for fact in facts if fact.source is not None]
    read = sources or ids
    mask = pad_sequence([torch.ones_like(row) for row in read], batch_first=True)
    inputs = {"input_ids": pad_sequence(read, batch_first=True), "attention_mask": mask}
    if sources:
        inputs["decoder_input_ids"] = pad_sequence(ids, batch_first=True)
    return TargetBatch(inputs, pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX))
