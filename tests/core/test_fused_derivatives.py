"""What an edit may and may not do with the derivatives written by hand, of RMSProp's step and of the KL term."""

import pytest
import torch

from editable_hf.core import distillation_loss, edit, locality_loss, losses, rmsprop, token_locality_loss
from editable_hf.core.rmsprop_step import rmsprop_step

LABELS = torch.tensor([[4, 5, 6], [7, -100, -100], [8, 2, -100]])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("output", [0, 1])
def test_second_derivative_of_the_step_is_refused(output):
    grad = normal(3).requires_grad_()
    mean_square, numbers = normal(3, seed=1).square(), [torch.tensor(x, requires_grad=True) for x in (0.3, 0.6)]
    value = rmsprop_step(grad, mean_square, *numbers, 1e-6)[output].sum()
    # `sum` has a constant derivative, which is where autograd's own guard would let a wrong number through.
    with pytest.raises(RuntimeError, match="`rmsprop_step` has no second derivative"):
        torch.autograd.grad(value, grad, create_graph=True)


@pytest.mark.parametrize("loss", [locality_loss, distillation_loss])
def test_second_derivative_of_a_kl_term_is_refused(loss):
    logits = normal(3, 7, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="A KL term has no second derivative"):
        torch.autograd.grad(loss(normal(3, 7), logits), logits, create_graph=True)


def test_kl_term_within_a_constraint(classifier):
    # Its first derivative is enough for an edit; an edit that is differentiated needs the second, and must say so.
    x = torch.linspace(-1, 2, 6, dtype=torch.float64).unsqueeze(0)
    reference = classifier.eval()(x).logits.flip(1)

    def constraint(model, params):
        return locality_loss(reference, model(params, features=x).logits) - 1e-3

    result = edit(classifier, constraint, rmsprop(1e-2), "head", max_steps=5)
    assert result.num_steps > 0 and result.history[-1] < result.history[0]
    with pytest.raises(RuntimeError, match="A KL term has no second derivative"):
        edit(classifier, constraint, rmsprop(1e-2), "head", max_steps=5, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [5, 10**6])
def test_kl_of_identical_logits_is_exactly_zero_and_so_is_its_gradient(dtype, block, monkeypatch):
    monkeypatch.setattr(losses, "_CPU_BLOCK", block)
    same = (20 * normal(3, 3, 7)).to(dtype)
    # Laid out differently in memory, the same numbers.
    other = same.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not other.is_contiguous()
    for value in (
        token_locality_loss(same, other, LABELS),
        distillation_loss(same, other, LABELS),
        locality_loss(same[0], other[0]),
    ):
        assert value.item() == 0
        assert not torch.autograd.grad(value, other)[0].any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("reference_dtype", ["same", torch.float32])
def test_kl_in_half_precision(dtype, tolerance, reference_dtype):
    # Accelerate gives the base forward's logits in float32 beside an edit's in bfloat16.
    reference = normal(3, 3, 7).to(dtype)
    logits = normal(3, 3, 7, seed=1).to(dtype).requires_grad_()
    exact = logits.detach().double().requires_grad_()
    expected = token_locality_loss(reference.double(), exact, LABELS)
    expected.backward()
    value = token_locality_loss(
        reference if reference_dtype == "same" else reference.to(reference_dtype), logits, LABELS
    )
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=tolerance)
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=tolerance * 0.1)
