import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from editable_hf.core import (
    ClassConstraint,
    adam,
    apply_updates,
    edit,
    gd,
    momentum,
    rmsprop,
    rprop,
    scaled_gd,
)

EDITORS = {
    "gd": gd(0.05),
    "scaled_gd": scaled_gd(0.3),
    "rprop": rprop(0.05),
    "rmsprop": rmsprop(0.05),
    "momentum": momentum(0.05),
    "adam": adam(0.05),
}
every_editor = pytest.mark.parametrize("name", EDITORS)
seeds = st.integers(0, 10**6)
factors = st.floats(1e-3, 1e3).filter(lambda factor: abs(factor - 1) > 0.1)


def random_params(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (3, 4), "bias": (4,), "scale": ()}
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}


def trajectory(editor, seed, factor=1.0, num_steps=5):
    """Edited values after each step of an edit of the logits of a random network, with `l_e` times `factor`."""
    params, state = random_params(seed), None
    state, states = editor.init(params), []
    x = torch.randn(3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    for _ in range(num_steps):
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        logits = torch.tanh(x @ params["weight"] + params["bias"]) * params["scale"].exp()
        loss = factor * (logits.square().sum() + logits[0].exp())
        grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
        updates, state = editor.update(grads, state)
        params = apply_updates(params, updates)
        states.append(torch.cat([value.detach().flatten() for value in params.values()]))
    return torch.stack(states)


@pytest.mark.parametrize("editor", [scaled_gd(0.3, eps=1e-30), rprop(0.05), rmsprop(0.05, 0.5, eps=1e-30)])
@given(seed=seeds, factor=factors)
def test_trajectory_does_not_depend_on_the_scale_of_the_constraint(editor, seed, factor):
    scaled, plain = trajectory(editor, seed, factor), trajectory(editor, seed)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("editor", [gd(0.01), momentum(0.01)])
@given(seed=seeds, factor=st.floats(1e-3, 0.5))
def test_trajectory_of_gd_depends_on_it(editor, seed, factor):
    assert not torch.allclose(trajectory(editor, seed, factor), trajectory(editor, seed), rtol=0, atol=1e-6)


@every_editor
@given(seed=seeds)
def test_editor_mutates_nothing(name, seed):
    editor, params = EDITORS[name], random_params(seed)
    kept_params, state = copy.deepcopy(params), editor.init(params)
    for step in range(3):
        grads = random_params(seed + step + 1)
        kept_grads, kept_state = copy.deepcopy(grads), copy.deepcopy(state)
        updates, next_state = editor.update(grads, state)
        apply_updates(params, updates)
        assert_equal(grads, kept_grads)
        assert_equal(params, kept_params)
        for field, kept in zip(state, kept_state, strict=True):
            assert_equal(field, kept)
        state = next_state


def assert_equal(value, kept):
    if isinstance(value, dict):
        assert list(value) == list(kept)
        assert all(torch.equal(value[name], kept[name]) for name in value)
    else:
        assert value is kept is None or bool(value == kept)


@every_editor
@given(seed=seeds)
def test_update_is_a_function_of_its_inputs(name, seed):
    editor, grads = EDITORS[name], random_params(seed)
    _, state = editor.update(random_params(seed + 1), editor.init(grads))
    first, second = editor.update(grads, state)[0], editor.update(grads, state)[0]
    assert_equal(first, second)


@every_editor
@given(seed=seeds)
def test_splitting_the_tensors_differently_changes_nothing(name, seed):
    editor = EDITORS[name]
    states, joined_states = [], []
    whole = torch.cat([value.flatten() for value in random_params(seed).values()])
    state, joined_state = editor.init(random_params(seed)), editor.init({"all": whole})
    for step in range(3):
        grads = random_params(seed + step + 1)
        joined = torch.cat([value.flatten() for value in grads.values()])
        updates, state = editor.update(grads, state)
        joined_updates, joined_state = editor.update({"all": joined}, joined_state)
        states.append(torch.cat([value.flatten() for value in updates.values()]))
        joined_states.append(joined_updates["all"])
    torch.testing.assert_close(torch.stack(states), torch.stack(joined_states), rtol=0, atol=1e-12)


class Network(nn.Module):
    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return type("Output", (), {"logits": x})


@given(
    seed=seeds,
    name=st.sampled_from(list(EDITORS)),
    layers=st.sets(st.sampled_from(["layers.0", "layers.1.bias", "layers.2.weight", "*.bias"]), min_size=1),
    create_graph=st.booleans(),
)
def test_edit_touches_the_selection_only(seed, name, layers, create_graph):
    model = Network(seed)
    x = torch.ones(1, 4, dtype=torch.float64)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    target = int(model(x).logits.argmin())
    result = edit(model, ClassConstraint({"x": x}, target), EDITORS[name], sorted(layers), 3, create_graph)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    chosen = {
        key
        for key in before
        for layer in layers
        if key.startswith(layer) or layer == "*.bias" and key.endswith("bias")
    }
    assert set(result.params) == chosen
    assert result.num_steps > 0
    assert any(not torch.equal(value, before[key]) for key, value in result.params.items())


@given(seed=seeds, name=st.sampled_from(list(EDITORS)), create_graph=st.booleans())
def test_satisfied_constraint_means_no_step_and_the_same_parameters(seed, name, create_graph):
    model = Network(seed)
    x = torch.ones(1, 4, dtype=torch.float64)
    target = int(model(x).logits.argmax())
    result = edit(model, ClassConstraint({"x": x}, target), EDITORS[name], "*", 3, create_graph)
    assert result.success and result.num_steps == 0
    assert all(torch.equal(result.params[key], value) for key, value in model.named_parameters())
