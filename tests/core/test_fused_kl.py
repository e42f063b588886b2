"""The fused KL divergence behind the locality and distillation losses."""

import pytest
import reference
import torch
from torch.nn import functional as F

from editable_hf.core import distillation_loss, locality_loss, losses, token_locality_loss

LABELS = torch.tensor([[4, 5, 6, 2], [7, 2, -100, -100], [-100, 8, -100, 2]])
LOSSES = {
    "token_locality": lambda before, after: token_locality_loss(before, after, LABELS),
    "locality": lambda before, after: locality_loss(before.flatten(0, 1), after.flatten(0, 1)),
    "token_distillation": lambda before, after: distillation_loss(before, after, LABELS),
    "distillation": lambda before, after: distillation_loss(before.flatten(0, 1), after.flatten(0, 1)),
}
ORACLES = {
    "token_locality": lambda before, after: reference.token_locality(before, after, LABELS),
    "locality": lambda before, after: reference.locality(before.flatten(0, 1), after.flatten(0, 1)),
    "token_distillation": lambda before, after: reference.locality(before[LABELS != -100], after[LABELS != -100]),
    "distillation": lambda before, after: reference.locality(before.flatten(0, 1), after.flatten(0, 1)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
# 12 rows of 9: one block, one row a block, several rows a block with a rest, exactly the rows.
every_block = pytest.mark.parametrize("block", [2**18, 1, 9, 9 * 5, 9 * 12])


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every_block
@every_loss
def test_value_and_derivative(name, block, monkeypatch):
    monkeypatch.setattr(losses, "_CPU_BLOCK", block)
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1).requires_grad_()
    ours, expected = LOSSES[name](before, after), ORACLES[name](before, after)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-13)
    grads = [torch.autograd.grad(value, after)[0] for value in (ours, expected)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-13)
    # Central differences along a few directions: `gradcheck` would run the backward twice.
    for seed in range(3):
        direction = logits(3, 4, 9, seed=10 + seed)
        with torch.no_grad():
            ahead, behind = (LOSSES[name](before, after + sign * 1e-5 * direction) for sign in (1, -1))
        torch.testing.assert_close((grads[0] * direction).sum(), (ahead - behind) / 2e-5, rtol=0, atol=1e-9)


@every_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_loss
def test_identical_logits_give_exactly_zero(name, dtype, block, monkeypatch):
    monkeypatch.setattr(losses, "_CPU_BLOCK", block)
    same = logits(3, 4, 9, scale=30).to(dtype)
    after = same.clone().requires_grad_()
    value = LOSSES[name](same, after)
    value.backward()
    assert value.item() == 0 and value.dtype == dtype
    assert not after.grad.any()


@every_block
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("name", ["token_locality", "token_distillation"])
def test_padding_that_is_not_finite_counts_nothing(name, bad, block, monkeypatch):
    monkeypatch.setattr(losses, "_CPU_BLOCK", block)
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1)
    wanted = LOSSES[name](before, after)
    for padded in (before, after):
        padded[LABELS == -100] = bad
    after.requires_grad_()
    value = LOSSES[name](before, after)
    value.backward()
    assert value.item() == wanted.item()
    assert torch.isfinite(after.grad).all() and not after.grad[LABELS == -100].any()
    assert after.grad[LABELS != -100].any(-1).all()


@every_loss
def test_second_backward_raises(name):
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1).requires_grad_()
    value = LOSSES[name](before, after)
    torch.autograd.grad(value, after, retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by its first backward; compute the term again"):
        torch.autograd.grad(value, after)


@every_loss
def test_second_derivative_raises(name):
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1).requires_grad_()
    with pytest.raises(RuntimeError):
        (grad,) = torch.autograd.grad(LOSSES[name](before, after), after, create_graph=True)
        torch.autograd.grad(grad.square().sum(), after)


@every_loss
def test_inputs_are_left_alone(name):
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1).requires_grad_()
    copies = before.clone(), after.detach().clone()
    LOSSES[name](before, after).backward()
    assert torch.equal(before, copies[0]) and torch.equal(after, copies[1])


def test_no_derivative_is_computed_without_gradient():
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1)
    for name, loss in LOSSES.items():
        value = loss(before, after)
        assert not value.requires_grad, name
        torch.testing.assert_close(value, ORACLES[name](before, after), rtol=0, atol=1e-13)


def test_logits_that_are_a_view():
    before, wide = logits(4, 3, 9).transpose(0, 1), logits(3, 5, 18, seed=1).requires_grad_()
    after = wide[:, 1:, ::2]
    grads = [torch.autograd.grad(table["token_locality"](before, after), wide)[0] for table in (LOSSES, ORACLES)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-13)


def test_probability_that_is_zero_in_floating_point_counts_nothing():
    before, after = torch.tensor([[0.0, -2000.0, 1.0]]).double(), torch.tensor([[0.5, 3.0, 1.0]]).double()
    after.requires_grad_()
    value = locality_loss(before, after)
    value.backward()
    # `F.kl_div` takes 0 log 0 for 0.
    expected = F.kl_div(after.log_softmax(-1), before.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(value, expected)
    assert torch.isfinite(after.grad).all()


def test_several_terms_and_accumulated_gradients():
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1).requires_grad_()
    total = sum((index + 1) * LOSSES["token_locality"](before, after * (1 + index)) for index in range(3))
    total.backward()
    expected = sum((index + 1) * ORACLES["token_locality"](before, after * (1 + index)) for index in range(3))
    torch.testing.assert_close(after.grad, torch.autograd.grad(expected, after)[0], rtol=0, atol=1e-12)
