import pytest
import torch

from editable_hf.core import ClassConstraint, FunctionalModel, JointConstraint, edit, gd


def constraints_of(classifier, count=3):
    inputs = [{"features": torch.linspace(-1, 1 + i, 6, dtype=torch.float64).unsqueeze(0)} for i in range(count)]
    return [ClassConstraint(each, int(classifier.eval()(**each).logits.argmin())) for each in inputs]


def value_and_gradient(classifier, constraint):
    params = {name: p.detach().clone().requires_grad_() for name, p in classifier.second.named_parameters("second")}
    value = constraint(FunctionalModel(classifier, list(params)), params)
    grads = torch.autograd.grad(value, list(params.values()), allow_unused=True, materialize_grads=True)
    return value, torch.cat([grad.flatten() for grad in grads])


def test_worst_constraint_alone_has_a_gradient(classifier):
    constraints = constraints_of(classifier)
    each = [value_and_gradient(classifier, constraint) for constraint in constraints]
    worst = max(range(3), key=lambda index: each[index][0].item())
    value, gradient = value_and_gradient(classifier, JointConstraint(constraints))
    assert value == each[worst][0] and torch.equal(gradient, each[worst][1])


def test_mean_of_what_is_missing(classifier):
    constraints = constraints_of(classifier)
    satisfied = ClassConstraint(constraints[0].inputs, int(classifier(**constraints[0].inputs).logits.argmax()))
    each = [value_and_gradient(classifier, constraint) for constraint in constraints]
    value, gradient = value_and_gradient(classifier, JointConstraint([*constraints, satisfied], "mean"))
    torch.testing.assert_close(value, sum(value for value, _ in each) / 4)
    torch.testing.assert_close(gradient, sum(gradient for _, gradient in each) / 4)


@pytest.mark.parametrize("reduction", ["max", "mean"])
def test_edit_satisfies_all(classifier, reduction):
    constraints = constraints_of(classifier, 2)
    result = edit(classifier, JointConstraint(constraints, reduction), gd(0.05), ["first", "second", "head"], 200)
    assert result.success and result.num_steps > 0
    model = FunctionalModel(classifier, list(result.params))
    assert all(constraint(model, result.params) <= 0 for constraint in constraints)


def test_value_that_is_not_a_number_is_the_worst():
    nan = torch.tensor(float("nan"))
    joint = JointConstraint([lambda model, params: torch.tensor(1.0), lambda model, params: nan])
    assert joint(None, {}).isnan()


def test_errors():
    with pytest.raises(ValueError, match="`constraints` is empty: give at least one"):
        JointConstraint([])
    with pytest.raises(ValueError, match="`reduction` must be 'max' or 'mean', got 'sum'"):
        JointConstraint([lambda model, params: 0], "sum")
