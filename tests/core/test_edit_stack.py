import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from editable_hf.core import EditStack, edit, edited, rmsprop, select_parameters


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def is_as_in(model, state):
    now = model.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], value) for name, value in state.items())


def random_edit(model, layers, seed):
    generator = torch.Generator().manual_seed(seed)
    # Of all magnitudes, so that old + delta - delta would not give the old values back.
    return {
        name: torch.randn(value.shape, generator=generator).double() * 10.0 ** (seed % 30)
        for name, value in select_parameters(model, layers).items()
    }


edits = st.lists(st.tuples(st.sampled_from(["0", "1", "2", "0.bias", "*"]), st.integers(0, 1000)), max_size=6)


@given(made=edits)
def test_edits_are_taken_back_one_by_one(made):
    model = small_model()
    stack, states = EditStack(model), []
    parameters = dict(model.named_parameters())
    for layers, seed in made:
        states.append(snapshot(model))
        params = random_edit(model, layers, seed)
        stack.apply(params)
        own = dict(model.named_parameters())
        assert all(torch.equal(own[name], value) for name, value in params.items())
        assert all(torch.equal(own[name], states[-1][name]) for name in own if name not in params)
        assert len(stack) == len(states)
    for state in reversed(states):
        stack.undo()
        assert is_as_in(model, state)
    assert len(stack) == 0
    assert all(value is parameters[name] for name, value in model.named_parameters())


def test_result_of_an_edit(classifier):
    features = torch.linspace(-1, 2, 6, dtype=torch.float64).unsqueeze(0)

    def constraint(model, params):
        return model(params, features=features).logits[0, 0] + 1.0

    start, stack, losses = snapshot(classifier), EditStack(classifier), []
    for _ in range(3):
        result = edit(classifier, constraint, rmsprop(0.01), "head", max_steps=1)
        losses.append(result.history)
        stack.apply(result)
    # Each edit starts where the one before ended.
    assert [after for _, after in losses[:-1]] == pytest.approx([before for before, _ in losses[1:]], abs=1e-12)
    assert losses[2][1] < losses[0][0]
    while len(stack):
        stack.undo()
    assert is_as_in(classifier, start)


def test_nothing_left_to_take_back():
    model = small_model()
    stack = EditStack(model)
    with pytest.raises(IndexError, match="There is no edit left to take back"):
        stack.undo()
    stack.apply(random_edit(model, "0", 1))
    stack.undo()
    with pytest.raises(IndexError, match="There is no edit left to take back"):
        stack.undo()


@pytest.mark.parametrize(
    ("broken", "error"),
    [({"0.bias": torch.ones(4), "2.bias": torch.zeros(3)}, RuntimeError), ({"9.bias": torch.ones(2)}, ValueError)],
    ids=["shape", "name"],
)
def test_edit_that_does_not_fit_leaves_the_stack_as_it_was(broken, error):
    model = small_model()
    stack, start = EditStack(model), snapshot(model)
    stack.apply(random_edit(model, "*", 2))
    between = snapshot(model)
    with pytest.raises(error):
        stack.apply(broken)
    assert is_as_in(model, between) and len(stack) == 1
    stack.undo()
    assert is_as_in(model, start)


def test_unknown_names_are_listed():
    with pytest.raises(ValueError, match="that Sequential does not have: 7.bias, 8.bias. Apply it to the model"):
        EditStack(small_model()).apply({"7.bias": torch.ones(2), "8.bias": torch.ones(2)})


def test_later_changes_of_the_edit_do_not_reach_the_model():
    model = small_model()
    stack, params = EditStack(model), random_edit(small_model(), "2", 3)
    stack.apply(params)
    now = snapshot(model)
    for value in params.values():
        value.zero_()
    assert is_as_in(model, now)


def test_edit_with_graph_is_applied_as_values():
    model = small_model()
    params = {name: value.requires_grad_() * 2 for name, value in random_edit(model, "2", 3).items()}
    EditStack(model).apply(params)
    own = dict(model.named_parameters())
    assert all(own[name].is_leaf and own[name].requires_grad for name in params)
    assert all(torch.equal(own[name], value) for name, value in params.items())


def test_stack_within_an_edited_block():
    model = small_model()
    start = snapshot(model)
    with edited(model, random_edit(model, "0", 4)):
        inside, stack = snapshot(model), EditStack(model)
        stack.apply(random_edit(model, "*", 5))
        stack.undo()
        assert is_as_in(model, inside)
    assert is_as_in(model, start)
