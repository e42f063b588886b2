"""One step of RMSProp with a hand-written derivative.

Section 4.4 edits three million weights ten times a training step; by then the elementwise work on them, forward and
backward, costs as much as the model's own passes. Autograd would record nine operations a step, each going through
memory again in both directions; this records one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rmsprop_step(
    grad: Tensor, mean_square: Tensor | None, learning_rate: float | Tensor, beta: float | Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`-alpha * grad / sqrt(rms + eps)` and `rms = beta * rms + (1 - beta) * grad ** 2`.

    Differentiable once in all tensors given.

    Args:
        grad: Gradient of one parameter.
        mean_square: rms before the step, same shape; `None` at the first, where rms is `grad ** 2`.
        learning_rate: alpha.
        beta: Decay of rms.
        eps: Added to rms inside the root.

    Returns:
        What to add to the parameter, and the new rms.
    """
    return _RMSPropStep.apply(grad, mean_square, learning_rate, beta, eps)


class _RMSPropStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad, mean_square, learning_rate, beta, eps):
        new = grad.square()
        if mean_square is not None:
            new = torch.lerp(new, mean_square, beta)
        scale = (new + eps).rsqrt_()
        ctx.save_for_backward(grad, mean_square, scale, *(x for x in (learning_rate, beta) if isinstance(x, Tensor)))
        ctx.values = (learning_rate, beta)
        return (grad * scale).mul_(-learning_rate), new

    @staticmethod
    def backward(ctx, grad_update, grad_new):
        # `once_differentiable` does not see that the derivative depends on what was saved: it would pass for constant.
        if torch.is_grad_enabled():
            raise RuntimeError("`rmsprop_step` has no second derivative: differentiate it without `create_graph`.")
        grad, mean_square, scale, *_ = ctx.saved_tensors
        learning_rate, beta = ctx.values
        through = grad_update * scale  # d / d(-alpha * grad), elementwise
        grad_rate = -torch.dot(through.flatten(), grad.flatten()) if ctx.needs_input_grad[2] else None
        # d(rms + eps)^(-1/2) = -1/2 (rms + eps)^(-3/2)
        by_new = (through * scale).mul_(scale).mul_(grad).mul_(0.5 * learning_rate).add_(grad_new)
        by_grad = through.mul_(-learning_rate)
        if mean_square is None:
            return by_grad.addcmul_(by_new, grad, value=2.0), None, grad_rate, None, None
        grad_beta = None
        if ctx.needs_input_grad[3]:
            grad_beta = torch.dot(by_new.flatten(), torch.addcmul(mean_square, grad, grad, value=-1.0).flatten())
        by_grad.add_((by_new * grad).mul_(2.0 * (1.0 - beta)))
        return by_grad, by_new.mul_(beta), grad_rate, grad_beta, None
