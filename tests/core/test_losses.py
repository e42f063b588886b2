import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from editable_hf.core import distillation_loss, edit_loss, locality_loss, objective, token_locality_loss

LABELS = torch.tensor([[4, 5, 6, 2], [7, 2, -100, -100], [-100, 8, -100, 2]])


def logits(*shape, seed=0, scale=2.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_locality_equals_the_oracle():
    before, after = logits(6, 5), logits(6, 5, seed=1)
    torch.testing.assert_close(locality_loss(before, after), reference.locality(before, after), rtol=0, atol=1e-12)


def test_token_locality_equals_the_oracle():
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1)
    expected = reference.token_locality(before, after, LABELS)
    torch.testing.assert_close(token_locality_loss(before, after, LABELS), expected, rtol=0, atol=1e-12)


def test_gradients_equal_the_oracles():
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1).requires_grad_()
    for ours, expected in (
        (locality_loss(before[0], after[0]), reference.locality(before[0], after[0])),
        (token_locality_loss(before, after, LABELS), reference.token_locality(before, after, LABELS)),
    ):
        grads = [torch.autograd.grad(value, after)[0] for value in (ours, expected)]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_direction_of_the_divergence():
    # KL(p || q) of p = (1/2, 1/2) and q = (1/4, 3/4) is ln 2 - ln 3 / 2; KL(q || p) is 3/4 ln 3 - ln 2.
    p, q = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.25, 0.75]]).double().log()
    assert locality_loss(p, q).item() == pytest.approx(0.14384103622589045)
    assert distillation_loss(p, q).item() == pytest.approx(0.14384103622589045)
    assert token_locality_loss(p[None], q[None], torch.tensor([[3]])).item() == pytest.approx(0.14384103622589045)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_locality_of_identical_logits_is_exactly_zero(dtype):
    same = logits(3, 4, 9).to(dtype)
    assert token_locality_loss(same, same.clone(), LABELS).item() == 0
    assert locality_loss(same[0], same[0].clone()).item() == 0


@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 50), shift=st.floats(-5, 5))
def test_locality_is_not_negative_and_ignores_a_shift(seed, scale, shift):
    before, after = logits(4, 6, seed=seed, scale=scale), logits(4, 6, seed=seed + 1, scale=scale)
    value = locality_loss(before, after)
    assert value >= 0
    torch.testing.assert_close(locality_loss(before + shift, after), value, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 10**6), noise=st.floats(-1e3, 1e3))
def test_padded_positions_do_not_count(seed, noise):
    before, after = logits(3, 4, 9, seed=seed), logits(3, 4, 9, seed=seed + 1)
    padding = (LABELS == -100).unsqueeze(-1)
    value = token_locality_loss(before, after, LABELS)
    assert value >= 0
    moved = token_locality_loss(before - noise * padding, torch.where(padding, noise * before, after), LABELS)
    assert moved.item() == value.item()


def test_padded_positions_have_no_gradient_even_where_not_finite():
    before, after = logits(3, 4, 9), logits(3, 4, 9, seed=1)
    after[LABELS == -100] = torch.inf
    after.requires_grad_()
    token_locality_loss(before, after, LABELS).backward()
    assert torch.isfinite(after.grad).all() and not after.grad[LABELS == -100].any()


def test_each_sentence_weighs_the_same_whatever_its_length():
    before, after = logits(2, 4, 9), logits(2, 4, 9, seed=1)
    labels = torch.tensor([[3, 4, 5, 2], [2, -100, -100, -100]])
    each = [token_locality_loss(before[i : i + 1], after[i : i + 1], labels[i : i + 1]) for i in range(2)]
    torch.testing.assert_close(token_locality_loss(before, after, labels), sum(each) / 2)


def test_sentence_without_tokens_counts_as_zero():
    before, after = logits(2, 4, 9), logits(2, 4, 9, seed=1)
    labels = torch.stack([LABELS[0], torch.full((4,), -100)])
    full = token_locality_loss(before[:1], after[:1], labels[:1])
    torch.testing.assert_close(token_locality_loss(before, after, labels), full / 2)
    assert token_locality_loss(before[1:], after[1:], labels[1:]).item() == 0


def test_no_gradient_flows_into_the_reference():
    before, after = logits(3, 4, 9).requires_grad_(), logits(3, 4, 9, seed=1).requires_grad_()
    for value in (
        token_locality_loss(before, after, LABELS),
        locality_loss(before[0], after[0]),
        distillation_loss(before[0], after[0]),
        distillation_loss(before, after, LABELS),
    ):
        grads = torch.autograd.grad(value, [before, after], allow_unused=True)
        assert grads[0] is None and grads[1].abs().sum() > 0


def test_distillation_takes_the_mean_over_all_tokens():
    teacher, student = logits(3, 4, 9), logits(3, 4, 9, seed=1)
    mask = LABELS != -100
    expected = reference.locality(teacher[mask], student[mask])
    torch.testing.assert_close(distillation_loss(teacher, student, LABELS), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        distillation_loss(teacher[0], student[0]), reference.locality(teacher[0], student[0]), rtol=0, atol=1e-12
    )


def test_edit_loss_is_the_positive_part():
    for value, expected in ((-1.5, 0.0), (0.0, 0.0), (2.5, 2.5)):
        assert edit_loss(torch.tensor(value)).item() == expected
    met = torch.tensor(-1.5, requires_grad=True)
    edit_loss(met).backward()
    assert met.grad == 0


def test_objective_weighs_its_terms():
    base, constraint, local = torch.tensor(3.0), torch.tensor(0.5), torch.tensor(0.25)
    value = objective(base, edit_loss(constraint), local, 2.0, 100.0)
    assert value.item() == 3 + 2 * 0.5 + 100 * 0.25
    assert value.item() == reference.objective(base, constraint, local, 2.0, 100.0).item()
    assert objective(base, edit_loss(-constraint), local, 2.0, 100.0).item() == 3 + 100 * 0.25
