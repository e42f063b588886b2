"""The terms of Eq. 2."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from editable_hf.core.constraints import IGNORE_INDEX, launches_dominate
from editable_hf.core.functional import widened


def edit_loss(constraint_value: Tensor) -> Tensor:
    """`L_edit = max(0, l_e(theta_edited))`, Eq. 3, in nats."""
    return F.relu(constraint_value)


def _kl_divergence(reference_logits: Tensor, logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """`KL(reference || other)` over the last dimension, in nats; exactly 0 for identical logits.

    The reference takes no gradient. Where `mask` is given and false, the value is 0 and there is no gradient either.
    """
    shape = logits.shape[:-1]
    padding = None if mask is None else (~mask).flatten().nonzero().squeeze(1)
    return _FusedKL.apply(reference_logits.detach().flatten(0, -2), logits.flatten(0, -2), padding).view(shape)


# Elements of logits that are worked on at once: they stay in a core's cache from the first pass to the last. On a
# GPU, where a launch costs more than a pass, only memory sets a limit.
_CPU_BLOCK, _LARGE_BLOCK = 2**18, 2**26


class _FusedKL(torch.autograd.Function):
    """Row by row `KL(softmax(reference) || softmax(logits))` without temporaries of the logits' size.

    Over a vocabulary the plain expression goes some ten times through memory. This one keeps the derivative with
    respect to the logits, `softmax(logits) - softmax(reference)`, and nothing else; the backward uses it up. First
    derivatives only.
    """

    @staticmethod
    def forward(ctx, reference: Tensor, logits: Tensor, padding: Tensor | None) -> Tensor:
        num_rows, width = logits.shape
        divergence = widened(logits.new_empty(num_rows))
        derivative = torch.empty_like(logits) if ctx.needs_input_grad[1] else None
        step = max(1, (_LARGE_BLOCK if launches_dominate(logits.device) else _CPU_BLOCK) // max(1, width))
        for start in range(0, num_rows, step):
            block = slice(start, start + step)
            log_p, log_q = (F.log_softmax(widened(each[block]), -1) for each in (reference, logits))
            p = log_p.exp()
            divergence[block] = log_p.sub_(log_q).mul_(p).sum(-1)
            if derivative is not None:
                torch.sub(log_q.exp_(), p, out=derivative[block])
        if padding is not None:  # set, not multiplied by 0: nothing says that logits are finite there
            divergence[padding] = 0.0
            if derivative is not None:
                derivative[padding] = 0.0
        ctx.derivative = derivative
        return divergence

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor, None]:
        # `once_differentiable` does not see that the derivative depends on the logits: it would pass for a constant.
        if torch.is_grad_enabled():
            raise RuntimeError("A KL term has no second derivative: differentiate it without `create_graph`.")
        if ctx.derivative is None:
            raise RuntimeError("The derivative of a KL term is used up by its first backward; compute the term again.")
        derivative, ctx.derivative = ctx.derivative, None
        return None, derivative.mul_(grad.unsqueeze(-1)), None


def locality_loss(reference_logits: Tensor, edited_logits: Tensor) -> Tensor:
    """`L_loc = E_x KL(p(y | x, theta) || p(y | x, theta_edited))`, Eq. 4, in nats.

    Args:
        reference_logits: `(batch, num_classes)` of the model before the edit; no gradient flows into it.
        edited_logits: `(batch, num_classes)` of the edited model.

    Returns:
        Scalar, 0 exactly if the edit changed nothing.
    """
    return _kl_divergence(reference_logits.detach(), edited_logits).mean()


def token_locality_loss(reference_logits: Tensor, edited_logits: Tensor, labels: Tensor) -> Tensor:
    """Eq. 4 averaged over the target tokens of each sentence, then over the sentences (section 4.4), in nats.

    Args:
        reference_logits: `(batch, length, vocab)` of the model before the edit; no gradient flows into it.
        edited_logits: `(batch, length, vocab)` of the edited model, on the same target prefixes.
        labels: `(batch, length)`, -100 at padding, which does not count. A sentence without a token counts as 0.
    """
    return _token_mean(reference_logits.detach(), edited_logits, labels).mean()


def _token_mean(reference_logits: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean KL over the tokens of each sentence, `(batch,)`."""
    mask = labels != IGNORE_INDEX
    divergence = _kl_divergence(reference_logits, logits, mask)
    return divergence.sum(1) / mask.sum(1).clamp(min=1)


def distillation_loss(teacher_logits: Tensor, logits: Tensor, labels: Tensor | None = None) -> Tensor:
    """`KL(teacher || student)` as the base loss of editable fine-tuning (section 4.3), in nats.

    Args:
        teacher_logits: `(batch, num_classes)` or `(batch, length, vocab)` of the starting network; detached.
        logits: The student's, same shape.
        labels: `(batch, length)` for sequences: the mean is taken over tokens that are not -100.
    """
    teacher_logits = teacher_logits.detach()
    if labels is None:
        return _kl_divergence(teacher_logits, logits).mean()
    mask = labels != IGNORE_INDEX
    return _kl_divergence(teacher_logits, logits, mask).sum() / mask.sum()


def objective(base: Tensor, edit: Tensor, locality: Tensor, edit_coef: float, locality_coef: float) -> Tensor:
    """`Obj = L_base + c_edit * L_edit + c_loc * L_loc`, Eq. 2.

    Args:
        base: Task (or distillation) loss, scalar.
        edit: [`edit_loss`], scalar.
        locality: [`locality_loss`] or [`token_locality_loss`], scalar.
        edit_coef: c_edit.
        locality_coef: c_loc.
    """
    return base + edit_coef * edit + locality_coef * locality
