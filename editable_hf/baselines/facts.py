"""Facts as rows of tokens: what a constraint wants said after each prompt, and the loss on what is said."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from editable_hf.core.constraint_batch import IGNORE_INDEX, token_losses
from editable_hf.core.constraints import Constraint, JointConstraint, SequenceConstraint, without_margin
from editable_hf.core.continuations import ContinuationConstraint, Fact, TargetBatch
from editable_hf.core.editing import EditFunction
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel


def facts_of(constraint: Constraint) -> list[Fact]:
    """The facts that a constraint asks for.

    Raises:
        TypeError: If it is no [`ContinuationConstraint`], nor a [`JointConstraint`] of such.
    """
    parts = constraint.constraints if isinstance(constraint, JointConstraint) else [constraint]
    parts = [without_margin(part) for part in parts]
    for part in parts:
        if not isinstance(part, ContinuationConstraint):
            raise TypeError(
                "Expected a ContinuationConstraint, or a JointConstraint of such, because this editor writes what "
                f"follows a prompt; got a {type(part).__name__}."
            )
    return [part.facts[0] for part in parts]


def targets_of(constraint: Constraint) -> list[Fact]:
    """As [`facts_of`], of translations too: what fine-tuning trains on.

    Raises:
        TypeError: For another constraint than those of prompts and of translations, or a [`JointConstraint`] of such.
    """
    parts = constraint.constraints if isinstance(constraint, JointConstraint) else [constraint]
    parts = [without_margin(part) for part in parts]
    if all(isinstance(part, SequenceConstraint) for part in parts):
        return [_translation(part) for part in parts]
    return [fact for part in parts for fact in facts_of(part)]


def _translation(constraint: SequenceConstraint) -> Fact:
    wanted = constraint.labels[0]
    start = constraint.decoder_input_ids[0, :1]
    return Fact(start, wanted[wanted != IGNORE_INDEX], constraint.inputs["input_ids"][0])


def target_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the log-probability of each row's target, the mean over its tokens, `(num_rows,)`; 0 without target."""
    labels = labels[:, 1:]
    return token_losses(logits[:, :-1], labels).sum(1) / (labels != IGNORE_INDEX).sum(1).clamp(min=1)


def target_loss(model: FunctionalModel, params: Params, batch: TargetBatch) -> Tensor:
    """The mean of [`target_losses`] over the facts: what fine-tuning minimizes."""
    return target_losses(model(params, **batch.inputs, use_cache=False).logits, batch.labels).mean()


def one_step(
    write: Callable[[FunctionalModel, Constraint, Params, int], Params],
    read: Callable[[Constraint], list[Fact]] = facts_of,
) -> EditFunction:
    """The editor of facts that takes one step, `write`, or none where they hold already or `max_steps` is 0."""

    def run(model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int):
        read(constraint)  # other constraints are refused before the model runs
        with torch.no_grad():
            before = constraint(model, params)
        if before.item() <= 0 or max_steps == 0:
            return params, before, [before.item()]
        params = write(model, constraint, params, max_steps)
        with torch.no_grad():
            after = constraint(model, params)
        return params, after, [before.item(), after.item()]

    return run
