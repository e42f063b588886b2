"""Several edits of the same model as one: as many kernels as a single edit has.

Each edit has a copy of the edited parameters, a row of one matrix. No row has a part in another's constraint, so the
gradient of the sum of all constraints is that of each, and the editor's step on the matrix is the step of each edit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from editable_hf.core.constraint_batch import ClassBatch, ContinuationBatch, SequenceBatch
from editable_hf.core.constraints import (
    ClassConstraint,
    Constraint,
    SequenceConstraint,
    fit_one_pass,
    launches_dominate,
)
from editable_hf.core.continuations import ContinuationConstraint
from editable_hf.core.edited_batch import CannotBatchEdits, EditGroups
from editable_hf.core.editing import AnyEditor, EditResult, edit, loss_values, prepared
from editable_hf.core.editors import Editor, Params, apply_updates
from editable_hf.core.flat import FlatLayout
from editable_hf.core.functional import FunctionalModel, widened

ConstraintBatch = SequenceBatch | ContinuationBatch | ClassBatch


def edit_each(
    model: nn.Module,
    constraints: Sequence[Constraint],
    editor: AnyEditor,
    layers: str | Iterable[str],
    max_steps: int = 10,
    replay: bool = True,
) -> list[EditResult]:
    """[`edit`] of the same model for each constraint, with graph.

    Where launching a kernel takes longer than running it, all edits run together and each stops by itself; the results
    are those of separate edits but for rounding. One edit runs after another on a CPU, where that is less arithmetic,
    and where edits cannot go together: constraints of several kinds, [`JointConstraint`]s, editors that treat
    parameters by their names, layers whose use does not go by rows.

    Args:
        model: See [`edit`], as the other arguments.
        constraints: One for each edit.
        editor: The same for all.
        layers: The same for all.
        max_steps: Of each edit.
        replay: See [`edit`].

    Example:
        >>> first, second = edit_each(model, [one, other], rmsprop(1e-3), "last_decoder_layer")  # doctest: +SKIP
    """
    results = None
    if len(constraints) > 1 and launches_dominate(next(model.parameters()).device):
        results = _edit_together(model, constraints, editor, layers, max_steps, replay)
    if results is not None:
        return results
    return [edit(model, each, editor, layers, max_steps, create_graph=True, replay=replay) for each in constraints]


def _edit_together(
    model: nn.Module,
    constraints: Sequence[Constraint],
    editor: AnyEditor,
    layers: str | Iterable[str],
    max_steps: int,
    replay: bool,
) -> list[EditResult] | None:
    """As many at once as memory holds; `None` where they cannot go together or a number is not finite."""
    batch = _batched(model, constraints, editor)
    if batch is None:
        return None
    if not fit_one_pass(batch.num_logits(model)):
        half = len(constraints) // 2
        parts = constraints[:half], constraints[half:]
        return [result for part in parts for result in edit_each(model, part, editor, layers, max_steps, replay)]
    try:
        with prepared(model, editor, layers, True, replay) as (functional_model, params):
            return _descend(editor, functional_model, batch, params, max_steps, len(constraints))
    except CannotBatchEdits as error:
        warnings.warn(f"Edits run one after another: {error}", stacklevel=3)
        return None


def _batched(model: nn.Module, constraints: Sequence[Constraint], editor: AnyEditor) -> ConstraintBatch | None:
    """The constraints as one; `None` where these, the editor or the model do not allow it."""
    if not isinstance(editor, Editor) or editor.flatten is None:  # it looks at the names
        return None
    if any("expert_capacity" in vars(module) for module in model.modules()):  # experts drop tokens of a full batch
        return None
    kinds = {type(each) for each in constraints}
    if kinds == {ContinuationConstraint}:
        return ContinuationBatch(constraints)
    if kinds == {SequenceConstraint}:
        forms = {(each.length_penalty, *sorted(each.inputs)) for each in constraints}
        padded = all(form[1:] == ("attention_mask", "input_ids") for form in forms)
        return SequenceBatch(constraints) if len(forms) == 1 and padded else None
    if kinds == {ClassConstraint}:
        forms = {tuple((name, value.shape) for name, value in each.inputs.items()) for each in constraints}
        return ClassBatch(constraints) if len(forms) == 1 else None
    return None


def _descend(
    editor: Editor, model: FunctionalModel, batch: ConstraintBatch, params: Params, max_steps: int, count: int
) -> list[EditResult] | None:
    """The steps of `count` edits, with graph; `None` if a number is not finite."""
    groups, layout = EditGroups(count), FlatLayout(params)
    editor, packed = editor.flatten(layout), layout.pack(params)
    kinds = {key: value.dtype for key, value in packed.items()}
    sums = {key: widened(value).expand(count, -1) for key, value in packed.items()}  # (num_edits, size)
    state, grads = editor.init(sums), {}
    histories: list[list[float]] = [[] for _ in range(count)]
    running = list(range(count))
    while True:
        packed = {key: value.to(kinds[key]) for key, value in sums.items()}
        params = layout.unpack(packed)
        with groups.watching(model.model):
            losses = batch(model, groups.tell_apart(params))
        values, norm = loss_values(losses, [*grads.values(), *packed.values()])
        if not math.isfinite(norm) or not all(value < math.inf for value in values):
            return None
        for edit_number in running:
            histories[edit_number].append(values[edit_number])
        running = [n for n in running if values[n] > 0 and len(histories[n]) <= max_steps]
        if not running:
            return _results(params, losses, histories)
        found = torch.autograd.grad(
            losses.sum(), list(sums.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        grads = dict(zip(sums, found, strict=True))
        updates, state = editor.update(grads, state)
        moved = apply_updates(sums, updates)
        if len(running) < count:  # what has reached its goal stays
            moves = torch.tensor([[n in running] for n in range(count)], device=losses.device)
            moved = {key: torch.where(moves, value, sums[key]) for key, value in moved.items()}
        sums = moved


def _results(params: Params, losses: Tensor, histories: list[list[float]]) -> list[EditResult]:
    own = zip(*(values.unbind() for values in params.values()), strict=True)  # of each edit
    return [
        EditResult(dict(zip(params, tensors, strict=True)), history[-1] <= 0, len(history) - 1, loss, history)
        for tensors, loss, history in zip(own, losses.unbind(), histories, strict=True)
    ]
