"""Edits that meet NaN or infinity: they end, say why, and give the last numbers that were finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from editable_hf.core.editing import edit, edited
from editable_hf.core.editors import EDITORS, Editor, LearnableEditor, gd, rprop


class Slope(nn.Module):
    """`weight + bias`, with gradient 1 for both."""

    def __init__(self, weight=3.0, bias=0.0, dtype=torch.float64):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=dtype))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=dtype))

    def forward(self, inputs):
        return inputs * (self.weight + self.bias)


ONE = torch.ones((), dtype=torch.float64)


def constraint_of(function):
    return lambda model, params: function(model(params, inputs=ONE))


def run(function, editor=None, model=None, **options):
    model = model or Slope()
    return model, edit(model, constraint_of(function), editor or gd(1.0), "*", replay=False, **options)


def test_nothing_is_said_of_edits_that_merely_do_not_reach_their_goal():
    _, result = run(lambda value: value + 100, max_steps=2)
    assert result.failure is None and not result.success and result.num_steps == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_before_the_first_step(value):
    model, result = run(lambda output: output * 0 + value)
    assert result.failure == f"l_e is {value} before the first step"
    assert not result.success and result.num_steps == 0 and len(result.history) == 1
    assert all(torch.equal(result.params[name], p) for name, p in model.named_parameters())


def test_infinitely_satisfied():
    _, result = run(lambda output: output - math.inf)
    assert result.success and result.failure is None and result.num_steps == 0


@pytest.mark.parametrize("create_graph", [False, True])
def test_loss_after_a_step(create_graph):
    # Steps of 1 in each of two parameters: outputs 3, 1, -1; the logarithm of the third is NaN.
    model, result = run(lambda output: output.log() + 5 + output, gd(0.4), max_steps=20, create_graph=create_graph)
    assert result.failure.startswith("l_e is nan after step ")
    assert not result.success and result.num_steps == int(result.failure.split()[-1]) - 1 > 0
    assert len(result.history) == result.num_steps + 1 and all(map(math.isfinite, result.history))
    output = result.params["weight"] + result.params["bias"]
    assert (output.log() + 5 + output).item() == pytest.approx(result.history[-1], rel=1e-12)  # they belong together
    assert result.loss.item() == result.history[-1]
    if create_graph:
        grads = torch.autograd.grad(result.loss + sum(result.params.values()), list(model.parameters()))
        assert all(grad.isfinite() for grad in grads)


def test_gradient():
    # The derivative of the square root is infinite at 0, where the value is fine; RProp's step would be too.
    for editor in (gd(1.0), rprop(1.0)):
        model, result = run(lambda output: (output - 3).sqrt() + 1, editor)
        assert result.failure == "the gradient of weight is not finite in step 1"
        assert result.num_steps == 0 and result.history == [1.0] and not result.success
        assert all(torch.equal(result.params[name], p) for name, p in model.named_parameters())


def test_weight_that_overflows_is_no_success():
    far = Editor(lambda params: None, lambda grads, state: ({name: ONE * 1.7e308 for name in grads}, state))
    _, result = run(lambda output: 0.5 - output.tanh(), far, Slope(weight=-1.7e308, bias=1.7e308))
    assert result.failure == "bias is not finite after step 1"  # though the hyperbolic tangent of infinity is 1
    assert not result.success and result.history == [0.5] and result.params["bias"].item() == 1.7e308


def test_numbers_whose_squares_overflow_are_finite():
    _, result = run(lambda output: output, gd(1e200), Slope(weight=3e200), max_steps=3)
    assert result.success and result.failure is None and result.num_steps == 2


def test_weights_that_are_broken_from_the_start():
    _, result = run(lambda output: output.nan_to_num(-1.0), model=Slope(weight=math.nan))
    assert result.failure == "weight is not finite before the first step" and not result.success


@pytest.mark.parametrize("editor", list(EDITORS))
def test_every_editor_that_steps_too_far(editor):
    """Steps as long as the largest number lead to infinity or NaN, in whatever way the editor comes to its steps."""
    built = LearnableEditor(editor, False, False, learning_rate=1e308).build()
    model, result = run(lambda output: (output**2 + 1).log(), built, Slope(weight=3.0), max_steps=20)
    assert result.failure is not None and not result.success
    assert all(value.isfinite() for value in result.params.values()) and math.isfinite(result.loss)
    assert all(map(math.isfinite, result.history))


@pytest.mark.parametrize(
    ("weight", "value", "failure"),
    [
        (math.inf, -1.0, "weight is not finite after step 1"),  # though that satisfies the constraint
        (1.0, math.nan, "l_e is nan after step 1"),
    ],
)
def test_editor_without_gradient_steps(weight, value, failure):
    def choose(model, constraint, params, max_steps):
        return {**params, "weight": ONE * weight}, ONE * value, [2.0, value]

    model, result = run(lambda output: output, choose)
    assert result.failure == failure
    assert not result.success and result.history == [2.0] and result.loss.item() == 2.0
    assert all(torch.equal(result.params[name], p) for name, p in model.named_parameters())


def test_editor_without_gradient_steps_that_has_nothing_to_go_by():
    _, result = run(
        lambda output: output, lambda model, constraint, params, steps: (params, ONE * math.nan, [math.nan])
    )
    assert result.failure == "l_e is nan before the first step" and not result.success and result.num_steps == 0


def test_parameter_without_elements():
    model = Slope()
    model.none = nn.Parameter(torch.zeros(0, dtype=torch.float64))
    _, result = run(lambda output: output, model=model, max_steps=20)
    assert result.success and result.failure is None and result.params["none"].numel() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("create_graph", [False, True])
def test_steps_of_an_edit_in_half_precision_add_up(dtype, create_graph):
    """Single steps of a hundredth of the spacing at 3 would all be rounded away."""
    spacing = torch.finfo(dtype).eps * 2
    model = Slope(dtype=dtype)
    start = model.weight.item()
    goal = torch.tensor(start - 2 * spacing, dtype=dtype)
    constraint = constraint_of(lambda output: output.double() - goal.double())
    result = edit(model, constraint, gd(spacing / 100), ["weight"], 1000, create_graph, replay=False)
    assert result.success and 100 < result.num_steps < 300 and result.params["weight"].dtype == dtype
    assert result.params["weight"].item() == goal.item()
    assert result.history[-1] == 0.0 and len(set(result.history)) == 3  # as the model computes, in its precision
    if create_graph:
        (grad,) = torch.autograd.grad(result.params["weight"], [model.weight])
        assert grad.item() == 1.0


def test_failed_edit_can_be_applied_and_taken_back():
    model, result = run(lambda output: output.log() + 5 + output, gd(0.4), max_steps=20)
    with edited(model, result):
        assert all(p.isfinite().all() for p in model.parameters())
    assert model.weight.item() == 3.0
