"""Constraints `l_e`: what an edit must achieve, as a scalar that is `<= 0` exactly when it is achieved.

A constraint is called as `constraint(model, params)` with a [`FunctionalModel`] and the parameters tried; it knows
its own inputs. Any callable of that form can be given to [`edit`].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from editable_hf.core.functional import FunctionalModel

IGNORE_INDEX = -100


@dataclass(frozen=True)
class ClassConstraint:
    """`l_e = max_{i != target} log p(y_i | x) - log p(target | x)` (section 3), in nats.

    The reference class is left out of the maximum, so that the value is negative by the margin where the constraint
    holds; a tie counts as satisfied.

    Args:
        inputs: Keyword inputs of the model for one example.
        target: Index of the wanted class.
    """

    inputs: Mapping[str, Tensor]
    target: int

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        logits = model(params, **self.inputs).logits.squeeze(0)  # (num_classes,)
        others = logits.masked_fill(F.one_hot(logits.new_tensor(self.target).long(), len(logits)).bool(), -torch.inf)
        return others.max() - logits[self.target]

    def to(self, device: torch.device) -> ClassConstraint:
        """A copy with its inputs on `device`."""
        return replace(self, inputs={key: value.to(device) for key, value in self.inputs.items()})


@dataclass(frozen=True)
class SequenceConstraint:
    """`l_e = max_i log p(y_i | s) - log p(y_0 | s)` over the alternatives of one source (section 4.4), in nats.

    Sentence log-probabilities are sums over tokens; with `length_penalty` they are divided by `length ** penalty`,
    the score by which beam search ranks finished hypotheses.

    Build it with [`SequenceConstraint.from_ids`], which checks what it is given.

    Args:
        inputs: Keyword inputs of the encoder for one source, each `(1, source_length)`.
        decoder_input_ids: `(1 + num_alternatives, length)`, row 0 the target.
        labels: `(1 + num_alternatives, length)`, -100 where padded.
        length_penalty: Exponent of the length normalisation, 0 for the sum.
    """

    inputs: Mapping[str, Tensor]
    decoder_input_ids: Tensor
    labels: Tensor
    length_penalty: float = 0.0

    @classmethod
    def from_ids(
        cls,
        inputs: Mapping[str, Tensor],
        target: Sequence[int],
        alternatives: Sequence[Sequence[int]],
        *,
        decoder_start_token_id: int,
        pad_token_id: int,
        max_length: int | None = None,
        length_penalty: float = 0.0,
    ) -> SequenceConstraint:
        """Builds the constraint from token ids, each sequence ending in its end-of-sequence token.

        Args:
            inputs: Encoder inputs of one source, each `(1, source_length)`.
            target: Token ids of the wanted translation.
            alternatives: Token ids of the translations it must beat. The target itself and repetitions are removed.
            decoder_start_token_id: First decoder input.
            pad_token_id: Fills the decoder inputs where a row is shorter.
            max_length: Longest sequence the model can decode, if it has a limit.
            length_penalty: See the class.

        Raises:
            ValueError: If the target is empty or too long, or no alternative is left.
        """
        target = list(target)
        if not target:
            raise ValueError("The edit's target is empty: give at least one token (its end of sequence included).")
        if max_length is not None and len(target) > max_length:
            raise ValueError(
                f"The edit's target has {len(target)} tokens, but the model decodes at most {max_length}; shorten it."
            )
        distinct = dict.fromkeys(tuple(ids)[:max_length] for ids in alternatives)
        rows = [target, *(list(ids) for ids in distinct if ids and list(ids) != target)]
        if len(rows) == 1:
            raise ValueError(
                f"No alternative differs from the target ({len(alternatives)} given): the constraint would compare "
                "the target with nothing. Generate alternatives with beam search (`editable_hf.data.requests`)."
            )
        labels = torch.full((len(rows), max(map(len, rows))), IGNORE_INDEX)
        for row, ids in zip(labels, rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        decoder_input_ids = labels.roll(1, dims=1)
        decoder_input_ids[:, 0] = decoder_start_token_id
        decoder_input_ids[decoder_input_ids == IGNORE_INDEX] = pad_token_id
        return cls(dict(inputs), decoder_input_ids, labels, length_penalty)

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        # l_e is a maximum: only the target and the alternative that attains it have a gradient. Which one that is
        # takes no graph to find, and the other rows are then left out. Exact, and most of the cost of an edit.
        with torch.no_grad():
            binding = 1 + self.scores(model, params)[1:].argmax()
        target, alternative = self.scores(model, params, rows=torch.stack([torch.zeros_like(binding), binding]))
        return alternative - target

    def scores(self, model: FunctionalModel, params: Mapping[str, Tensor], rows: Tensor | None = None) -> Tensor:
        """Log-probabilities of the sequences, length-normalised if asked for.

        Args:
            model: The model as a function of its edited parameters.
            params: The parameters tried.
            rows: Indices of the rows wanted, all by default.

        Returns:
            `(num_rows,)`, nats.
        """
        labels, decoder_input_ids = self.labels, self.decoder_input_ids
        if rows is not None:
            labels, decoder_input_ids = labels[rows], decoder_input_ids[rows]
            length = int((labels != IGNORE_INDEX).sum(1).max())
            labels, decoder_input_ids = labels[:, :length], decoder_input_ids[:, :length]
        hidden = model.encode(params, **self.inputs)  # (1, source_length, hidden)
        logits = model(
            params,
            encoder_outputs=(hidden.expand(len(labels), -1, -1),),
            attention_mask=self.inputs["attention_mask"].expand(len(labels), -1),
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits  # (num_rows, length, vocab)
        log_probs = -F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE_INDEX
        ).view_as(labels)
        scores = log_probs.sum(1)
        if self.length_penalty == 0:
            return scores
        lengths = (labels != IGNORE_INDEX).sum(1).to(scores.dtype)
        return scores / lengths**self.length_penalty

    def to(self, device: torch.device) -> SequenceConstraint:
        """A copy with its tensors on `device`."""
        return replace(
            self,
            inputs={key: value.to(device) for key, value in self.inputs.items()},
            decoder_input_ids=self.decoder_input_ids.to(device),
            labels=self.labels.to(device),
        )
