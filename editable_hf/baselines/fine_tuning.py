"""Fine-tuning on the corrected example alone: what one would do about a mistake without a constraint or an editor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from editable_hf.core.editing import EditResult, edited
from editable_hf.core.functional import eval_mode
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
