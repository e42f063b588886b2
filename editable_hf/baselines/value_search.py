"""The value that says a fact: a vector added where the subject ends, found by gradient descent (ROME, MEMIT).

Both editors write to the memory at the last token of a fact's subject. First they ask what should come out of a module
there for the model to say the target; then, in closed form, they change weights so that it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from editable_hf.baselines.facts import facts_of, target_losses
from editable_hf.baselines.linear_layers import inputs_kept
from editable_hf.core.constraints import Constraint
from editable_hf.core.continuations import Fact, TargetBatch, target_batch
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel
from editable_hf.seams.torch_seam import intercepted

Essence = tuple[Sequence[int], int]


class ValueSearch(NamedTuple):
    """How a value is searched for; the values of ROME's released code for GPT-2 XL.

    Attributes:
        learning_rate: Adam's.
        kl_weight: Of the divergence that the essence's next token must not take.
        weight_decay: Of the added vector's norm over the squared norm of what was there.
        max_norm: How long the added vector may be, in lengths of what was there.
        stop_loss: The search for a fact ends below it, nats.
    """

    learning_rate: float = 0.5
    kl_weight: float = 0.0625
    weight_decay: float = 0.5
    max_norm: float = 4.0
    stop_loss: float = 5e-2


ROME_SEARCH = ValueSearch()


class Subject(NamedTuple):
    """A fact, with where its subject ends.

    Attributes:
        fact: The prompt and its target.
        end: Position of the subject's last token in the prompt.
        essence: Token ids of a neutral prompt about the subject ("{subject} is a"), and where the subject ends in it.
    """

    fact: Fact
    end: int
    essence: Essence | None = None


def subjects_of(
    constraint: Constraint, ends: Sequence[int] | None = None, essences: Sequence[Essence] | None = None
) -> list[Subject]:
    """The facts of a constraint with their subjects; where none are given, the prompt's last token is the subject's.

    Raises:
        TypeError: See [`facts_of`].
        ValueError: If there are not as many of them as facts, or a subject ends outside its prompt.
    """
    facts = facts_of(constraint)
    ends = [len(fact.prompt) - 1 for fact in facts] if ends is None else ends
    essences = [None] * len(facts) if essences is None else essences
    if not len(facts) == len(ends) == len(essences):
        raise ValueError(
            f"The constraint has {len(facts)} facts, but there are {len(ends)} `subject_ends` and {len(essences)} "
            "`essences`: give one for each fact, in the same order."
        )
    for fact, end in zip(facts, ends, strict=True):
        if not 0 <= end < len(fact.prompt):
            raise ValueError(f"A subject ends at token {end} of a prompt of {len(fact.prompt)}: count from 0.")
    return [Subject(*each) for each in zip(facts, ends, essences, strict=True)]


class SubjectRows(NamedTuple):
    """Rows of tokens in which subjects end: each fact's prompt alone, then after each prefix, then its essence.

    Attributes:
        batch: The rows; an essence has no target.
        ends: `(num_rows,)`, where the subject ends.
        owners: `(num_rows,)`, which fact a row belongs to.
        first: `(num_facts,)`, the row of each fact's prompt alone.
        is_essence: `(num_rows,)`.
    """

    batch: TargetBatch
    ends: Tensor
    owners: Tensor
    first: Tensor
    is_essence: Tensor

    @classmethod
    def of(cls, subjects: Sequence[Subject], prefixes: Sequence[Sequence[int]], bos: int | None) -> SubjectRows:
        """The rows of some subjects. A prefix stands after the beginning-of-sequence token, where a prompt has one."""
        facts, places = [], []
        for owner, (fact, end, essence) in enumerate(subjects):
            start = int(fact.prompt[0].item() == bos)
            for prefix in ((), *prefixes):
                added = fact.prompt.new_tensor(prefix)
                facts.append(Fact(torch.cat([fact.prompt[:start], added, fact.prompt[start:]]), fact.target))
                places.append((end + len(prefix), owner, False))
            if essence is not None:
                facts.append(Fact(fact.prompt.new_tensor(essence[0]), fact.target[:0]))
                places.append((essence[1], owner, True))
        ends, owners, is_essence = torch.tensor(places, device=facts[0].prompt.device).T
        first = torch.stack([(owners == owner).nonzero()[0, 0] for owner in range(len(subjects))])
        return cls(target_batch(facts), ends, owners, first, is_essence == 1)

    def at_ends(self, states: Tensor) -> Tensor:
        """What `states`, `(num_rows, length, width)` or flattened, are where the subjects end, `(num_rows, width)`."""
        return states.flatten(0, -2)[self.places]

    @property
    def places(self) -> Tensor:
        """`ends` in a batch whose tokens stand in one row: OPT's layers are given such."""
        num_rows, length = self.batch.labels.shape
        return torch.arange(num_rows, device=self.ends.device) * length + self.ends

    def mean(self, values: Tensor) -> Tensor:
        """The mean over each fact's prompts, without its essence: of `(num_rows, ...)`, `(num_facts, ...)`."""
        values, owners = values[~self.is_essence], self.owners[~self.is_essence]
        sums = values.new_zeros(len(self.first), *values.shape[1:]).index_add(0, owners, values)
        return sums / torch.bincount(owners).view(-1, *[1] * (values.ndim - 1))


@contextmanager
def shifted(module: nn.Module, rows: SubjectRows, shift: Tensor | None = None) -> Iterator[list[Tensor]]:
    """Within, `shift`, `(num_facts, width)`, is added to what leaves `module` where the subjects end.

    Yields:
        A list to which each call adds what was there before, `(num_rows, width)`.
    """
    before: list[Tensor] = []

    def add(module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        states = output[0] if isinstance(output, tuple) else output  # decoder layers of some models return tuples
        before.append(rows.at_ends(states))
        if shift is not None:
            added = shift.to(states.dtype)[rows.owners]
            states = states.flatten(0, -2).index_add(0, rows.places, added).view_as(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    with intercepted([module], add):
        yield before


@torch.no_grad()
def keys_and_values(
    model: FunctionalModel, params: Params, rows: SubjectRows, layer: nn.Module, module: nn.Module
) -> tuple[Tensor, Tensor]:
    """What enters `layer` and what leaves `module` where the subjects end, each `(num_rows, width)`."""
    with inputs_kept([layer]) as kept, shifted(module, rows) as values:
        model(params, **rows.batch.inputs, use_cache=False)
    return rows.at_ends(kept[layer]), values[-1]


def search_values(
    model: FunctionalModel, params: Params, rows: SubjectRows, module: nn.Module, search: ValueSearch, max_steps: int
) -> Tensor:
    """The vectors with which the targets are said, added to what leaves `module` where each subject ends.

    Adam on ROME's Eq. 4, `mean_j -log p(target | x_j + prompt) + KL(p(. | essence) after || before)` over the prefixes
    x_j, with the weight decay and the bound on the length of its released code. The facts of a batch do not touch
    each other.

    Returns:
        `(num_facts, width)`, in float32 at least.
    """
    model = FunctionalModel(model.model, list(params))  # what it records goes with it
    last = rows.batch.inputs["attention_mask"].sum(1) - 1
    essence = rows.is_essence.nonzero()[:, 0]

    def forward(shift: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor]]:
        with shifted(module, rows, shift) as values:
            logits = model(params, **rows.batch.inputs, use_cache=False).logits
        return logits, logits[essence, last[essence]].log_softmax(-1), values

    with torch.no_grad():
        _, neutral, values = forward(None)
    start = values[-1][rows.first]
    start = start.to(torch.promote_types(start.dtype, torch.float32))
    length = start.norm(dim=1, keepdim=True)
    shift, searched = torch.zeros_like(start, requires_grad=True), torch.ones_like(length, dtype=torch.bool)
    optimizer = torch.optim.Adam([shift], search.learning_rate)
    for _ in range(max_steps):
        logits, now, _ = forward(shift)
        loss = rows.mean(target_losses(logits, rows.batch.labels))  # (num_facts,)
        divergence = (now.exp() * (now - neutral)).sum(1)
        loss = loss.index_add(0, rows.owners[essence], search.kl_weight * divergence)
        loss = loss + search.weight_decay * shift.norm(dim=1) / length.squeeze(1).square()
        searched &= (loss >= search.stop_loss).unsqueeze(1)
        if not searched.any():
            break
        (shift.grad,) = torch.autograd.grad(loss.sum(), [shift])
        with torch.no_grad():
            before = shift.clone()
            optimizer.step()
            shift *= (search.max_norm * length / shift.norm(dim=1, keepdim=True)).clamp(max=1)
            shift.copy_(torch.where(searched, shift, before))
    return shift.detach()
