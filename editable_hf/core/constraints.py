"""Constraints `l_e`: what an edit must achieve, as a scalar that is `<= 0` exactly when it is achieved.

A constraint is called as `constraint(model, params)` with a [`FunctionalModel`] and the parameters tried; it knows
its own inputs. Any callable of that form can be given to [`edit`].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from editable_hf.core.constraint_batch import IGNORE_INDEX, SequenceBatch, check_class, vocabulary_size
from editable_hf.core.functional import FunctionalModel, widened
from editable_hf.core.prefix_trie import PrefixTrie, head_from

# Where launching a kernel takes longer than running it, all sequences are scored in one pass with graph. Elsewhere a
# pass without graph finds the two that matter, each distinct prefix once, and another differentiates these alone: a
# fraction of the arithmetic for twice the kernels. So does a device where all logits of every step would fill memory.
ONE_PASS_DEVICES = {"cuda"}
MOST_LOGITS = 2**26


def launches_dominate(device: torch.device) -> bool:
    """Whether fewer kernels on more numbers are quicker there."""
    return device.type in ONE_PASS_DEVICES


def fit_one_pass(num_logits: int) -> bool:
    """Whether so many logits may be made in one pass."""
    return num_logits <= MOST_LOGITS


Constraint = Callable[[FunctionalModel, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class ClassConstraint:
    """`l_e = max_{i != target} log p(y_i | x) - log p(target | x)` (section 3), in nats.

    The reference class is left out of the maximum, so that the value is negative by the margin where the constraint
    holds; a tie counts as satisfied. Over several examples (augmentations of one image, say) it is the largest value:
    the constraint holds when all of them are given the class.

    Args:
        inputs: Keyword inputs of the model, for one example or a batch.
        target: Index of the wanted class.

    Raises:
        ValueError: When called, if the model has no such class.
    """

    inputs: Mapping[str, Tensor]
    target: int

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        logits = widened(model(params, **self.inputs).logits)  # (num_examples, num_classes)
        check_class(self.target, logits.shape[1])
        is_target = torch.arange(logits.shape[1], device=logits.device) == self.target
        others = logits.masked_fill(is_target, -torch.inf)
        return (others.amax(1) - logits[:, self.target]).max()

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
        length_penalty: Exponent of the length normalization, 0 for the sum.
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
        if max_length is not None and len(target) > max_length:
            raise ValueError(
                f"The edit's target has {len(target)} tokens, but the model decodes at most {max_length}; shorten it."
            )
        rows = distinct_rows(target, [list(ids)[:max_length] for ids in alternatives])
        length = max(map(len, rows))
        labels = [ids + [IGNORE_INDEX] * (length - len(ids)) for ids in rows]
        prefixes = [[decoder_start_token_id, *ids, *[pad_token_id] * (length - len(ids))][:length] for ids in rows]
        return cls(dict(inputs), torch.tensor(prefixes), torch.tensor(labels), length_penalty)

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        if launches_dominate(self.labels.device) and fit_one_pass(self.labels.numel() * vocabulary_size(model.model)):
            return model.once(("all", id(self)), lambda: SequenceBatch([self]))(model, params)[0]
        # l_e is a maximum: only the target and the alternative that attains it have a gradient. Which one that is
        # takes no graph to find, and the other rows are then left out. Exact, and most of the cost of an edit.
        with torch.no_grad():
            binding = 1 + int(self.scores(model, params)[1:].argmax())
        return self._margin(model, params, binding)

    def scores(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities of all sequences, length-normalized if asked for.

        Args:
            model: The model as a function of its edited parameters.
            params: The parameters tried.

        Returns:
            `(1 + num_alternatives,)`, nats.
        """
        hidden = model.encode(params, **self.inputs)  # (1, source_length, hidden)
        rows = model.once(("rows", id(self), id(hidden)), lambda: _Rows(model, self, hidden, range(len(self.labels))))
        trie = model.once(("trie", id(self)), lambda: PrefixTrie.build(rows.prefixes, rows.labels != IGNORE_INDEX))
        with trie.shared_by_rows(model.model):
            logits = widened(model(params, **rows.inputs).logits)
        mask = rows.labels != IGNORE_INDEX
        if logits.shape[:2] == trie.shape:  # the model does not call its output layer as a module
            logits = logits.flatten(0, 1)[trie.positions].unsqueeze(0)
        log_probs = logits.new_zeros(trie.shape)
        log_probs[mask] = F.log_softmax(logits[0], -1)[trie.node[mask], rows.labels[mask]]
        return self._normalize(log_probs.sum(1), rows.labels)

    def _margin(self, model: FunctionalModel, params: Mapping[str, Tensor], alternative: int) -> Tensor:
        """Score of one alternative less that of the target."""
        hidden = model.encode(params, **self.inputs)
        key = ("pair", id(self), id(hidden), alternative)
        pair = model.once(key, lambda: _Rows(model, self, hidden, [0, alternative]))
        # Tokens of a common beginning have the same probability in both sums, and the output layer is the dearest.
        shared = pair.common if self.length_penalty == 0 else 0
        labels = pair.labels[:, shared:]
        with head_from(model.model, shared):
            logits = model(params, **pair.inputs).logits
        logits = widened(logits[:, -labels.shape[1] :])
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", ignore_index=IGNORE_INDEX
        ).view_as(labels)
        target, alternative = self._normalize(-losses.sum(1), labels)
        return alternative - target

    def _normalize(self, scores: Tensor, labels: Tensor) -> Tensor:
        if self.length_penalty == 0:
            return scores
        return scores / (labels != IGNORE_INDEX).sum(1).to(scores.dtype) ** self.length_penalty

    def to(self, device: torch.device) -> SequenceConstraint:
        """A copy with its tensors on `device`."""
        return replace(
            self,
            inputs={key: value.to(device) for key, value in self.inputs.items()},
            decoder_input_ids=self.decoder_input_ids.to(device),
            labels=self.labels.to(device),
        )


@dataclass(frozen=True)
class JointConstraint:
    """Several constraints at once: `<= 0` exactly when every one of them is.

    Args:
        constraints: At least one.
        reduction: `max`, the worst one (`max_j l_e_j`), which alone has a gradient; or `mean`, the mean of
            `max(0, l_e_j)`, to which all that are not satisfied contribute.

    Raises:
        ValueError: Without a constraint, or for another reduction.
    """

    constraints: Sequence[Constraint]
    reduction: str = "max"

    def __post_init__(self):
        if not self.constraints:
            raise ValueError("`constraints` is empty: give at least one.")
        if self.reduction not in ("max", "mean"):
            raise ValueError(f"`reduction` must be 'max' or 'mean', got {self.reduction!r}.")

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        values = [constraint(model, params) for constraint in self.constraints]
        if self.reduction == "mean":
            return F.relu(torch.stack(values)).mean()
        # Picked, not reduced: a maximum would send a gradient of zeros back through all the others.
        return values[int(torch.stack(values).detach().argmax())]


@dataclass(frozen=True)
class WithMargin:
    """`l_e + margin`: satisfied when the target wins by at least `margin`, in the unit of the constraint."""

    constraint: Constraint
    margin: float

    def __call__(self, model: FunctionalModel, params: Mapping[str, Tensor]) -> Tensor:
        return self.constraint(model, params) + self.margin


def without_margin(constraint: Constraint) -> Constraint:
    return constraint.constraint if isinstance(constraint, WithMargin) else constraint


def distinct_rows(target: Sequence[int], alternatives: Sequence[Sequence[int]]) -> list[list[int]]:
    """The target and the alternatives that differ from it, each once.

    Raises:
        ValueError: If the target is empty, or no alternative is left.
    """
    if not target:
        raise ValueError("The edit's target is empty: give at least one token (an end of sequence included).")
    distinct = dict.fromkeys(map(tuple, alternatives))
    rows = [list(target), *(list(ids) for ids in distinct if ids and list(ids) != list(target))]
    if len(rows) == 1:
        raise ValueError(
            f"No alternative differs from the target ({len(alternatives)} given): the constraint would compare the "
            "target with nothing. Generate alternatives with beam search (`make_edit_requests`)."
        )
    return rows


class _Rows:
    """Some rows of a [`SequenceConstraint`] as inputs of the model.

    Attributes:
        prefixes: Decoder inputs, `(num_rows, length)`.
        labels: `(num_rows, length)`, -100 where padded.
        inputs: Keyword inputs; the same objects at every call, so that the model is replayed.
        common: Number of leading labels that all rows share.
    """

    def __init__(self, model: FunctionalModel, constraint: SequenceConstraint, hidden: Tensor, rows: Sequence[int]):
        labels, prefixes = constraint.labels[list(rows),], constraint.decoder_input_ids[list(rows),]
        # Kept, because the rows are found again by the ids of these two.
        self.made_from = (constraint, hidden)
        length, source_mask = int((labels != IGNORE_INDEX).sum(1).max()), constraint.inputs["attention_mask"]
        if length == hidden.shape[1]:
            # One more state that is masked: `PrefixTrie` tells decoder states from encoder states by their length,
            # and the decoder may have no position to spare.
            hidden, source_mask = F.pad(hidden, (0, 0, 0, 1)), F.pad(source_mask, (0, 1))
        self.labels, self.prefixes = labels[:, :length], prefixes[:, :length]
        differs = (self.labels != self.labels[0]).any(0)
        self.common = int(differs.to(torch.uint8).argmax())
        self.inputs = {
            "encoder_outputs": model.encoder_outputs(hidden.expand(len(labels), -1, -1)),
            "attention_mask": source_mask.expand(len(labels), -1),
            "decoder_input_ids": self.prefixes,
            "use_cache": False,
        }
