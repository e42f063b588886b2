"""Fine-tuning on the corrected example alone: what one would do about a mistake without a constraint or an editor.

Facts of a language model, and translations, are tuned in the two ways of the literature. *Depth-first*: one request
until it holds, kept near the weights as they were (`ft_l`). *Breadth-first*: all together, epoch after epoch
(`loc_ft`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from editable_hf.baselines.facts import one_step, target_loss, targets_of
from editable_hf.core.constraints import Constraint
from editable_hf.core.continuations import target_batch
from editable_hf.core.editing import EditFunction, EditResult, edited
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel, eval_mode
from editable_hf.core.selection import select_parameters


def fine_tune(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    holds: Callable[[PreTrainedModel], bool],
    *,
    layers: str | Iterable[str] = "*",
    learning_rate: float = 1e-5,
    max_steps: int = 100,
) -> EditResult:
    """Minimizes the model's own loss on one example with Adam until the correction holds.

    In eval mode, without dropout or a schedule. Where the model predicts what is wanted from the start, no step is
    taken.

    Args:
        model: A model of `transformers` that computes its loss from `labels`; it is left as it was, bit for bit.
        inputs: Its keyword inputs for the example, the wanted `labels` among them.
        holds: Whether the model that it is given now does what is wanted; asked before each step and after the last.
        layers: What may move, see [`select_parameters`]; parameters that do not require grad stay.
        learning_rate: Adam's.
        max_steps: Steps at most.

    Returns:
        The parameters, ready for [`edited`], with `success` as `holds` says at the end; `loss` and `history` are the
        model's loss, in nats. Where the loss is not finite it ends there, with the reason in `failure`.

    Raises:
        ValueError: If the inputs have no `labels`, `layers` has no parameter to train, or `max_steps` is negative.
    """
    if "labels" not in inputs:
        raise ValueError(f"`inputs` must hold the wanted `labels`, got {', '.join(inputs) or 'nothing'}.")
    if max_steps < 0:
        raise ValueError(f"`max_steps` must be 0 or more, got {max_steps}.")
    params = {
        name: param.detach().clone().requires_grad_()
        for name, param in select_parameters(model, layers).items()
        if param.requires_grad
    }
    if not params:
        raise ValueError(f"None of the parameters of {layers!r} requires grad: name layers that can be trained.")
    optimizer, history, failure = torch.optim.Adam(params.values(), learning_rate), [], None
    with eval_mode(model), torch.enable_grad():
        while True:
            loss = functional_call(model, params, kwargs=dict(inputs)).loss
            history.append(loss.item())
            if not loss.isfinite():
                success, failure = False, f"the loss is {loss.item()} after step {len(history) - 1}"
                break
            with edited(model, params):
                success = holds(model)
            if success or len(history) > max_steps:
                break
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            for param, grad in zip(params.values(), grads, strict=True):
                param.grad = grad
            optimizer.step()
    tuned = {name: param.detach() for name, param in params.items()}
    return EditResult(tuned, success, len(history) - 1, loss.detach(), history, failure)


def ft_l(*, learning_rate: float = 5e-4, max_change: float = 5e-4) -> EditFunction:
    """Constrained fine-tuning (FT-L): Adam on the target's loss, no weight further than `max_change` from its start.

    Zhu et al. (2020), "Modifying Memories in Transformer Models", Eq. 3 with the L-infinity norm, as ROME's paper runs
    it: `min -log p(target | prompt)` subject to `max_i |theta_i - theta0_i| <= delta`, by projection after each step.
    Several facts are one batch.

    Args:
        learning_rate: Adam's.
        max_change: delta.

    Returns:
        An editor for `edit(model, constraint, ft_l(), "layers.3.mlp.down_proj", max_steps)` with a
        [`ContinuationConstraint`] or a [`SequenceConstraint`], or a [`JointConstraint`] of such: a step is one of
        Adam's, and the edit ends where the constraint holds.
    """

    def tune(model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int):
        leaves, start = leaves_of(params), leaves_of(params)

        @torch.no_grad()
        def project() -> None:
            for name, leaf in leaves.items():
                leaf.clamp_(start[name] - max_change, start[name] + max_change)

        optimizer = torch.optim.Adam(leaves.values(), learning_rate)
        return until_it_holds(model, constraint, lambda: stored(leaves, params), optimizer, max_steps, project)

    return tune


def loc_ft(
    *, learning_rate: float = 5e-4, batch_size: int = 100, stop_loss: float = 1e-2, seed: int = 0
) -> EditFunction:
    """Localized breadth-first fine-tuning (LocFT-BF): an ordinary training run on all facts, of one chosen layer.

    Yang et al. (2025), "Fine-tuning Done Right in Model Editing": Adam on mini-batches of shuffled facts, epoch after
    epoch, in place of one fact after another; the mean loss of the target's tokens. Its authors end every target with
    the end-of-sequence token; do so in the requests.

    Args:
        learning_rate: Adam's.
        batch_size: Facts of one update.
        stop_loss: Batches below it make no update, and an epoch below it is the last; nats per token.
        seed: Of the order of the facts.

    Returns:
        An editor for `edit(model, constraint, loc_ft(), "layers.22.mlp.down_proj", max_steps)` with a
        [`JointConstraint`] of [`ContinuationConstraint`]s or [`SequenceConstraint`]s, or one of these. `max_steps` is
        the number of epochs at most; the result counts one step, because looking at all alternatives after each epoch
        would take longer than the epoch.
    """

    def tune(model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int) -> Params:
        facts, leaves = targets_of(constraint), leaves_of(params)
        optimizer, generator = torch.optim.Adam(leaves.values(), learning_rate), torch.Generator().manual_seed(seed)
        whole = FunctionalModel(model.model, list(params), replay=False)  # no batch comes twice
        for _ in range(max_steps):
            total = 0.0
            for chosen in torch.randperm(len(facts), generator=generator).split(batch_size):
                batch = target_batch([facts[index] for index in chosen.tolist()])
                loss = target_loss(whole, stored(leaves, params), batch)
                total += loss.item() * len(chosen)
                if loss.item() >= stop_loss:
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            if total / len(facts) < stop_loss:
                break
        return stored(leaves, params)

    return one_step(tune, targets_of)


def leaves_of(params: Params) -> Params:
    """Copies that an optimizer can move, in float32 at least: small steps are lost in half precision."""
    kinds = {name: torch.promote_types(param.dtype, torch.float32) for name, param in params.items()}
    return {name: param.detach().to(kinds[name], copy=True).requires_grad_() for name, param in params.items()}


def stored(leaves: Params, params: Params) -> Params:
    """The copies in the precision of the model."""
    return {name: leaf.to(params[name].dtype) for name, leaf in leaves.items()}


def until_it_holds(
    model: FunctionalModel,
    constraint: Constraint,
    weights: Callable[[], Params],
    optimizer: torch.optim.Optimizer,
    max_steps: int,
    project: Callable[[], None] = lambda: None,
) -> tuple[Params, Tensor, list[float]]:
    """Minimizes the loss of the constraint's targets until the constraint holds, as an [`EditFunction`] returns it.

    Args:
        model: The model as a function of its edited parameters.
        constraint: Says when it ends.
        weights: The edited parameters as they now are, with graph to what the optimizer moves.
        optimizer: Of the leaves behind them.
        max_steps: Steps at most.
        project: Called after each step.
    """
    batch, history = target_batch(targets_of(constraint)), []
    while True:
        params = weights()
        with torch.no_grad():
            l_e = constraint(model, params)
        history.append(l_e.item())
        if history[-1] <= 0 or len(history) > max_steps:
            return params, l_e, history
        optimizer.zero_grad()
        target_loss(model, params, batch).backward()
        optimizer.step()
        project()
