"""The paper's formulas written out one by one, slowly, as the oracle of the tests.

Nothing here comes from the package: no batching over rows, no cached encoder, log-softmax by hand, and each editor
computed afresh from the list of all gradients so far. Meant for float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Editor = Callable[[list[Tensor]], Tensor]  # gradients so far, oldest first, each a flat vector -> what to add to theta


# Section 4.1. The hyperparameters come after the gradients; `math.sqrt` would cut the graph, hence tensors.


def gd(grads: list[Tensor], alpha) -> Tensor:
    return -alpha * grads[-1]


def scaled_gd(grads: list[Tensor], alpha, eps: float = 1e-12) -> Tensor:
    first_norm = torch.sqrt((grads[0] * grads[0]).sum() + eps)
    return -alpha / first_norm * grads[-1]


def rprop(grads: list[Tensor], alpha) -> Tensor:
    positive, negative = (grads[-1] > 0).to(grads[-1]), (grads[-1] < 0).to(grads[-1])
    return -alpha * (positive - negative)


def rmsprop(grads: list[Tensor], alpha, beta, eps: float = 1e-6) -> Tensor:
    rms = grads[0] ** 2
    for grad in grads[1:]:
        rms = beta * rms + (1 - beta) * grad**2
    return -alpha * grads[-1] / torch.sqrt(rms + eps)


def momentum(grads: list[Tensor], alpha, mu) -> Tensor:
    nu = torch.zeros_like(grads[0])
    for grad in grads:
        nu = alpha * grad + mu * nu
    return -nu


def adam(grads: list[Tensor], alpha, beta1, beta2, eps: float = 1e-8) -> Tensor:
    m = v = torch.zeros_like(grads[0])
    for grad in grads:
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
    m_hat = m / (1 - beta1 ** len(grads))
    v_hat = v / (1 - beta2 ** len(grads))
    root = torch.stack([v.sqrt() if v > 0 else 0 * v for v in v_hat.flatten()]).view_as(v_hat)
    return -alpha * m_hat / (root + eps)


# Eq. 1


def unrolled_edit(
    loss_fn: Callable[[Tensor], Tensor], theta: Tensor, editor: Editor, max_steps: int
) -> tuple[Tensor, list[Tensor]]:
    """`Edit^k(theta, l_e)` on a flat vector, with graph; also returns `l_e` before each step and after the last."""
    grads: list[Tensor] = []
    losses: list[Tensor] = []
    while True:
        losses.append(loss_fn(theta))
        if losses[-1].item() <= 0 or len(grads) == max_steps:
            return theta, losses
        grads.append(torch.autograd.grad(losses[-1], theta, create_graph=True)[0])
        theta = theta + editor(grads)


def edit_copy(
    model: nn.Module,
    constraint: Callable[[nn.Module], Tensor],
    names: Sequence[str],
    editor: Editor,
    max_steps: int,
) -> tuple[dict[str, Tensor], list[float]]:
    """The edit on a deep copy of the model, in place and by `backward`; the copy's parameters and the losses."""
    model = copy.deepcopy(model).eval()
    params = [dict(model.named_parameters())[name].requires_grad_() for name in names]
    grads: list[Tensor] = []
    losses: list[float] = []
    while True:
        model.zero_grad()
        loss = constraint(model)
        losses.append(loss.item())
        if losses[-1] <= 0 or len(grads) == max_steps:
            return {name: param.detach() for name, param in zip(names, params, strict=True)}, losses
        loss.backward()
        grads.append(torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in params]))
        steps = editor(grads).split([param.numel() for param in params])
        for param, step in zip(params, steps, strict=True):
            param.data += step.view_as(param)


# Sections 3 and 4.4: constraints


def log_softmax(logits: Tensor) -> Tensor:
    return logits - torch.log(torch.exp(logits).sum())


def class_constraint(logits: Tensor, target: int) -> Tensor:
    """`max_{i != target} log p_i - log p_target` of one example's `(num_classes,)` logits."""
    log_probs = log_softmax(logits)
    best_other = None
    for index in range(len(logits)):
        if index != target and (best_other is None or log_probs[index] > best_other):
            best_other = log_probs[index]
    return best_other - log_probs[target]


def sequence_score(
    forward: Callable, inputs: Mapping[str, Tensor], ids: Sequence[int], start: int, length_penalty: float = 0.0
) -> Tensor:
    """`log p(y | s)` of one sequence by one call of the whole model."""
    decoder_input_ids = torch.tensor([[start, *ids[:-1]]])
    logits = forward(**inputs, decoder_input_ids=decoder_input_ids, use_cache=False).logits[0]  # (length, vocab)
    total = 0.0
    for step, token in enumerate(ids):
        total = total + log_softmax(logits[step])[token]
    return total / math.pow(len(ids), length_penalty)


def sequence_constraint(
    forward: Callable,
    inputs: Mapping[str, Tensor],
    target: Sequence[int],
    alternatives: Sequence[Sequence[int]],
    start: int,
    length_penalty: float = 0.0,
) -> Tensor:
    scores = [sequence_score(forward, inputs, ids, start, length_penalty) for ids in alternatives]
    return torch.stack(scores).max() - sequence_score(forward, inputs, target, start, length_penalty)


# Eqs. 2-4


def kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """`sum_i p_i (log p_i - log q_i)` of two `(num_classes,)` vectors of logits."""
    log_p, log_q = log_softmax(reference_logits), log_softmax(logits)
    return (torch.exp(log_p) * (log_p - log_q)).sum()


def locality(reference_logits: Tensor, logits: Tensor) -> Tensor:
    return sum(kl(p, q) for p, q in zip(reference_logits, logits, strict=True)) / len(logits)


def token_locality(reference_logits: Tensor, logits: Tensor, labels: Tensor, ignored: int = -100) -> Tensor:
    """Mean over the tokens of each sentence, then over sentences (section 4.4)."""
    sentences = []
    for row, row_labels in enumerate(labels.tolist()):
        tokens = [t for t, label in enumerate(row_labels) if label != ignored]
        sentences.append(sum(kl(reference_logits[row, t], logits[row, t]) for t in tokens) / len(tokens))
    return sum(sentences) / len(sentences)


def cross_entropy(logits: Tensor, labels: Tensor, ignored: int = -100) -> Tensor:
    """Mean negative log-probability of all labels of the batch."""
    terms = []
    for row, row_labels in enumerate(labels.tolist()):
        for step, label in enumerate(row_labels):
            if label != ignored:
                terms.append(-log_softmax(logits[row, step])[label])
    return sum(terms) / len(terms)


def objective(base: Tensor, edit_constraint: Tensor, local: Tensor, c_edit: float, c_loc: float) -> Tensor:
    edit = edit_constraint if edit_constraint.item() > 0 else 0 * edit_constraint
    return base + c_edit * edit + c_loc * local
