"""The terms of Eq. 2."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from editable_hf.core.constraints import IGNORE_INDEX


def edit_loss(constraint_value: Tensor) -> Tensor:
    """`L_edit = max(0, l_e(theta_edited))`, Eq. 3, in nats."""
    return F.relu(constraint_value)


def _kl_divergence(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """`KL(reference || other)` over the last dimension, in nats; exactly 0 for identical logits."""
    reference, other = F.log_softmax(reference_logits, -1), F.log_softmax(logits, -1)
    return (reference.exp() * (reference - other)).sum(-1)


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
    # Only real positions are compared: a padded position costs as much as a real one over a large vocabulary.
    divergence = _kl_divergence(reference_logits[mask], logits[mask])  # (num_tokens,)
    return logits.new_zeros(labels.shape).masked_scatter(mask, divergence).sum(1) / mask.sum(1).clamp(min=1)


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
    return _kl_divergence(teacher_logits[mask], logits[mask]).mean()


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
