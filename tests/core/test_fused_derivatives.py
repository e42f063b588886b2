"""The derivatives written by hand: of RMSProp's step and of the KL term."""

import pytest
import torch
from torch.autograd import gradcheck

from editable_hf.core import distillation_loss, edit, locality_loss, losses, rmsprop, token_locality_loss
from editable_hf.core.rmsprop_step import rmsprop_step

LABELS = torch.tensor([[4, 5, 6], [7, -100, -100], [8, 2, -100]])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


# RMSProp


def plain_step(grad, mean_square, learning_rate, beta, eps):
    new = grad**2 if mean_square is None else beta * mean_square + (1 - beta) * grad**2
    return -learning_rate * grad / torch.sqrt(new + eps), new


def step_inputs(shape, first, tensors, dtype=torch.float64):
    grad, mean_square = normal(*shape, dtype=dtype), normal(*shape, seed=1, dtype=dtype).square()
    numbers = (0.3, 0.6)
    if tensors:
        numbers = tuple(torch.tensor(number, dtype=dtype, requires_grad=True) for number in numbers)
    return grad.requires_grad_(), None if first else mean_square.requires_grad_(), *numbers


@pytest.mark.parametrize("shape", [(3, 4), (5,), ()])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tensors", [True, False])
def test_step_passes_gradcheck(shape, first, tensors):
    def step(*arguments):
        update, new = rmsprop_step(*arguments, 1e-3)
        return update, new, update.sum() + (new * update).sum()  # what uses both outputs as well

    assert gradcheck(step, step_inputs(shape, first, tensors), atol=1e-7)


@pytest.mark.parametrize("which", ["update", "mean_square"])
@pytest.mark.parametrize("tensor", ["learning_rate", "beta"])
def test_step_passes_gradcheck_with_one_output_and_one_tensor(which, tensor):
    grad, mean_square, learning_rate, beta = step_inputs((3, 2), False, True)
    numbers = {"learning_rate": 0.3, "beta": 0.6, tensor: learning_rate if tensor == "learning_rate" else beta}

    def step(grad, mean_square, number):
        arguments = {**numbers, tensor: number}
        return rmsprop_step(grad, mean_square, **arguments, eps=1e-6)[which == "mean_square"]

    assert gradcheck(step, (grad, mean_square, numbers[tensor]), atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("tensors", [True, False])
def test_step_equals_the_plain_formula(first, tensors, dtype, tolerance):
    results = []
    for function in (rmsprop_step, plain_step):
        inputs = step_inputs((4, 5), first, tensors, dtype)
        update, new = function(*inputs, 1e-6)
        weights = normal(4, 5, seed=2, dtype=dtype)
        ((update * weights).sum() + (new.sin() * weights).sum()).backward()
        grads = [x.grad for x in inputs if isinstance(x, torch.Tensor)]
        results.append([update, new, *(grad for grad in grads if grad is not None)])
    assert len(results[0]) == len(results[1]) == 3 + (not first) + tensors * (1 + (not first))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=tolerance, atol=tolerance)


def test_step_leaves_what_it_was_given_and_can_be_differentiated_repeatedly():
    grad, mean_square, learning_rate, beta = inputs = step_inputs((3, 4), False, True)
    copies = [tensor.detach().clone() for tensor in inputs]
    update, new = rmsprop_step(*inputs, 1e-6)
    value = (update * new).sum()
    first, second = (torch.autograd.grad(value, inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_step_takes_numbers_of_another_precision():
    # The editor's values stay in float32 when a model is converted.
    grad, mean_square = step_inputs((3, 4), False, False)[:2]
    numbers = [torch.tensor(number, requires_grad=True) for number in (0.25, 0.5)]
    update, new = rmsprop_step(grad, mean_square, *numbers, 1e-6)
    assert update.dtype == new.dtype == torch.float64
    torch.testing.assert_close(update, plain_step(grad, mean_square, 0.25, 0.5, 1e-6)[0])
    update.sum().backward()
    assert all(number.grad.dtype == torch.float32 for number in numbers)


@pytest.mark.parametrize("output", [0, 1])
def test_second_derivative_of_the_step_is_refused(output):
    inputs = step_inputs((3,), False, True)
    value = rmsprop_step(*inputs, 1e-6)[output].sum()
    # `sum` has a constant derivative, which is where autograd's own guard would let a wrong number through.
    with pytest.raises(RuntimeError, match="`rmsprop_step` has no second derivative"):
        torch.autograd.grad(value, inputs[0], create_graph=True)


# The KL term


def terms():
    """Name, function of the logits, shape of the logits."""
    flat, sequences = normal(3, 7), normal(3, 3, 7)
    return {
        "locality": (lambda logits: locality_loss(flat, logits), (3, 7)),
        "token_locality": (lambda logits: token_locality_loss(sequences, logits, LABELS), (3, 3, 7)),
        "distillation": (lambda logits: distillation_loss(flat, logits), (3, 7)),
        "token_distillation": (lambda logits: distillation_loss(sequences, logits, LABELS), (3, 3, 7)),
    }


every_term = pytest.mark.parametrize("term", list(terms()))


@every_term
@pytest.mark.parametrize("block", [1, 7, 8, 14, 20, 10**6])
def test_kl_gradient_equals_differences_whatever_the_block(term, block, monkeypatch):
    monkeypatch.setattr(losses, "_CPU_BLOCK", block)
    function, shape = terms()[term]
    logits, step = normal(*shape, seed=1), 1e-6
    leaf = logits.clone().requires_grad_()
    # gradcheck would go through the graph many times, which this term allows once.
    (3 * function(leaf) ** 2).backward()
    differences = torch.empty_like(logits)
    for index in range(logits.numel()):
        moved = torch.zeros(logits.numel(), dtype=torch.float64)
        moved[index] = step
        values = [3 * function(logits + sign * moved.view(shape)).item() ** 2 for sign in (1, -1)]
        differences.view(-1)[index] = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close(leaf.grad, differences, rtol=1e-5, atol=1e-8)
    assert leaf.grad.abs().max() > 1e-2


@every_term
def test_kl_value_does_not_depend_on_the_block(term, monkeypatch):
    function, shape = terms()[term]
    values = []
    for block in (10**6, 1, 10):
        monkeypatch.setattr(losses, "_CPU_BLOCK", block)
        values.append(function(normal(*shape, seed=1)).item())
    assert values[0] == pytest.approx(values[1], rel=1e-14) == pytest.approx(values[2], rel=1e-14)


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


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_kl_of_logits_that_are_not_contiguous(layout):
    build = {
        "transposed": lambda seed: normal(7, 3, 3, seed=seed).permute(2, 1, 0),
        "strided": lambda seed: normal(6, 3, 14, seed=seed)[::2, :, ::2],
        "expanded": lambda seed: normal(1, 3, 7, seed=seed).expand(3, 3, 7),
    }[layout]
    reference, logits = build(0), build(1).requires_grad_()
    plain = logits.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    assert not logits.is_contiguous() and plain.is_contiguous()
    values = [token_locality_loss(r, x, LABELS) for r, x in ((reference, logits), (reference.contiguous(), plain))]
    torch.testing.assert_close(*values, rtol=0, atol=1e-14)
    grads = [torch.autograd.grad(value, x)[0] for value, x in zip(values, (logits, plain), strict=True)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-14)


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


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("block", [7, 10**6])
@pytest.mark.parametrize("side", ["reference", "logits", "both"])
def test_padding_that_is_not_finite_has_no_value_and_no_gradient(bad, block, side, monkeypatch):
    monkeypatch.setattr(losses, "_CPU_BLOCK", block)
    reference, logits = normal(3, 3, 7), normal(3, 3, 7, seed=1)
    clean = [fn(reference, logits, LABELS).item() for fn in (token_locality_loss, distillation_loss)]
    for tensor in {"reference": [reference], "logits": [logits], "both": [reference, logits]}[side]:
        tensor[LABELS == -100] = bad
    logits.requires_grad_()
    for function, expected in zip((token_locality_loss, distillation_loss), clean, strict=True):
        value = function(reference, logits, LABELS)
        assert value.item() == expected
        (grad,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(grad).all() and not grad[LABELS == -100].any() and grad[LABELS != -100].any()


@every_term
def test_second_backward_through_a_kl_term_is_refused(term):
    function, shape = terms()[term]
    logits = normal(*shape, seed=1).requires_grad_()
    value = function(logits)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up by its first backward; compute the term again"):
        value.backward()


@every_term
def test_second_derivative_of_a_kl_term_is_refused(term):
    function, shape = terms()[term]
    logits = normal(*shape, seed=1).requires_grad_()
    with pytest.raises(RuntimeError, match="A KL term has no second derivative"):
        torch.autograd.grad(function(logits), logits, create_graph=True)


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
