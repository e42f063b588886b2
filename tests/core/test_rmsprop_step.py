"""The hand-written derivative of one RMSProp step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from editable_hf.core import edit, rmsprop
from editable_hf.core.rmsprop_step import rmsprop_step

EPS = 1e-6


def plain(grad, mean_square, learning_rate, beta, eps):
    new = grad**2 if mean_square is None else beta * mean_square + (1 - beta) * grad**2
    return -learning_rate * grad / torch.sqrt(new + eps), new


def random(*shape, seed=0, positive=False):
    value = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (value.square() + 0.1 if positive else value).requires_grad_()


def scalar(value, as_tensor):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True) if as_tensor else value


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True), (False, False)])
def test_derivative(shape, first, learned):
    grad, old = random(*shape), None if first else random(*shape, seed=1, positive=True)
    rate, beta = scalar(0.3, learned[0]), scalar(0.7, learned[1])
    given = [value for value in (grad, old, rate, beta) if isinstance(value, torch.Tensor)]

    def step(*values):
        values = iter(values)
        filled = [next(values) if isinstance(value, torch.Tensor) else value for value in (grad, old, rate, beta)]
        return rmsprop_step(*filled, EPS)

    assert gradcheck(step, given)
    for ours, expected in zip(step(*given), plain(grad, old, rate, beta, EPS), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("output", [0, 1])
@pytest.mark.parametrize("part", range(4))
def test_derivative_of_one_output_by_one_input(output, part):
    values = [random(2, 3), random(2, 3, seed=1, positive=True), scalar(0.3, True), scalar(0.7, True)]
    given = [value.detach().requires_grad_(index == part) for index, value in enumerate(values)]
    if (output, part) == (1, 2):  # the running mean does not depend on the learning rate
        (grad,) = torch.autograd.grad(rmsprop_step(*given, EPS)[1].sum(), given[part])
        assert grad == 0
        return
    assert gradcheck(lambda *inputs: rmsprop_step(*inputs, EPS)[output], given)


@given(seed=st.integers(0, 10**6), beta=st.floats(0, 1), rate=st.floats(1e-6, 10), scale=st.floats(1e-8, 1e4))
def test_gradients_over_several_steps_are_those_of_the_formula(seed, beta, rate, scale):
    leaves = [random(2, 3, seed=seed), scalar(rate, True), scalar(beta, True)]
    results = []
    for step in (rmsprop_step, plain):
        param, mean_square = leaves[0] * scale, None
        for _ in range(3):
            update, mean_square = step(torch.sin(param) + 0.1 * param, mean_square, leaves[1], leaves[2], EPS)
            param = param + update
        results.append([param, *torch.autograd.grad((param * torch.arange(6).view(2, 3)).sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9 * max(1.0, scale))


def test_gradient_of_zero_is_finite():
    grad, rate, beta = torch.zeros(3, dtype=torch.float64, requires_grad=True), scalar(0.1, True), scalar(0.5, True)
    update, new = rmsprop_step(grad, None, rate, beta, EPS)
    again, _ = rmsprop_step(grad, new, rate, beta, EPS)
    grads = torch.autograd.grad((update + again).sum(), [grad, rate, beta])
    assert all(torch.isfinite(value).all() for value in grads)
    torch.testing.assert_close(grads[0], torch.full_like(grad, -2 * 0.1 / EPS**0.5))


def test_non_contiguous_tensors_and_expanded_gradients():
    base, old = random(3, 2), random(3, 2, seed=1, positive=True)
    rate, beta = scalar(0.3, True), scalar(0.7, True)
    assert gradcheck(lambda a, b, c, d: rmsprop_step(a.t(), b.t(), c, d, EPS), [base, old, rate, beta])
    grads = [
        torch.autograd.grad(step(base.t(), old.t(), rate, beta, EPS)[0].sum(), [base, rate])
        for step in (rmsprop_step, plain)
    ]
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_hyperparameters_of_another_type_than_the_gradient(dtype):
    grad = random(4).detach().to(dtype).requires_grad_()
    rate, beta = torch.tensor(0.3, requires_grad=True), torch.tensor(0.7, requires_grad=True)
    update, new = rmsprop_step(grad, None, rate, beta, EPS)
    update, new = rmsprop_step(2 * grad, new, rate, beta, EPS)
    assert update.dtype == new.dtype == dtype
    update.sum().backward()
    assert rate.grad.dtype == beta.grad.dtype == torch.float32 and grad.grad.dtype == dtype
    reference = [value.detach().double().requires_grad_() for value in (grad, rate, beta)]
    first = plain(reference[0], None, *reference[1:], EPS)[1]
    expected = torch.autograd.grad(plain(2 * reference[0], first, *reference[1:], EPS)[0].sum(), reference)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    for leaf, value in zip((grad, rate, beta), expected, strict=True):
        torch.testing.assert_close(leaf.grad.double(), value, rtol=tolerance, atol=tolerance)


def test_inputs_are_left_alone():
    given = [random(3), random(3, seed=1, positive=True), scalar(0.3, True), scalar(0.7, True)]
    copies = [value.detach().clone() for value in given]
    update, new = rmsprop_step(*given, EPS)
    outgoing = [torch.ones_like(update), torch.ones_like(new)]
    torch.autograd.grad([update, new], given, outgoing)
    assert all(torch.equal(*pair) for pair in zip(given, copies, strict=True))
    assert all((value == 1).all() for value in outgoing)


def test_backward_may_run_twice():
    given = [random(3), random(3, seed=1, positive=True), scalar(0.3, True), scalar(0.7, True)]
    total = sum(value.sum() for value in rmsprop_step(*given, EPS))
    first = torch.autograd.grad(total, given, retain_graph=True)
    assert all(torch.equal(*pair) for pair in zip(first, torch.autograd.grad(total, given), strict=True))


@pytest.mark.parametrize("through_outgoing", [True, False])
def test_second_derivative_raises(through_outgoing):
    grad, weight = random(3), random(3, seed=2)
    update, _ = rmsprop_step(grad, None, 0.3, 0.5, EPS)
    total = (update * weight).sum() if through_outgoing else update.sum()
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(total, grad, create_graph=True)
        torch.autograd.grad(first.sum(), grad)


def test_changing_a_saved_tensor_in_place_raises():
    grad = random(3).detach() * 1
    rate = scalar(0.3, True)
    update, _ = rmsprop_step(grad, None, rate, 0.5, EPS)
    grad.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        update.sum().backward()


@pytest.mark.parametrize("create_graph", [True, False])
def test_edit_with_float_hyperparameters_is_that_of_the_formula(classifier, create_graph):
    def constraint(model, params):
        return sum(value.square().sum() for value in params.values()) + 1

    result = edit(classifier, constraint, rmsprop(0.1, 0.6), "head", max_steps=3, create_graph=create_graph)
    for name, value in result.params.items():
        expected, mean_square = classifier.get_parameter(name).detach(), None
        for _ in range(3):
            update, mean_square = plain(2 * expected, mean_square, 0.1, 0.6, EPS)
            expected = expected + update
        torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=1e-12)
        assert value.requires_grad == create_graph
