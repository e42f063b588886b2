import math
import warnings

import pytest
import reference
import torch

from editable_hf.core import (
    EDITORS,
    LearnableEditor,
    adam,
    apply_updates,
    gd,
    momentum,
    rmsprop,
    rprop,
    scaled_gd,
)
from editable_hf.core.editors import DEFAULT_EPS

# name: factory, oracle, learning rate, decays
TABLE = {
    "gd": (gd, reference.gd, 0.02, ()),
    "scaled_gd": (scaled_gd, reference.scaled_gd, 0.3, ()),
    "rprop": (rprop, reference.rprop, 0.05, ()),
    "rmsprop": (rmsprop, reference.rmsprop, 0.05, (0.6,)),
    "momentum": (momentum, reference.momentum, 0.01, (0.7,)),
    "adam": (adam, reference.adam, 0.05, (0.3, 0.8)),
}
every_editor = pytest.mark.parametrize("name", TABLE)


def ill_conditioned_quadratic(params):
    scales = torch.logspace(-2, 1.5, 12, dtype=torch.float64)
    vector = torch.cat([params["a"].flatten(), params["b"]])
    return 0.5 * (scales * vector * vector).sum() + 0.3 * vector[0] * vector[-1]


def small_mlp(params):
    features = torch.linspace(-1, 1, 8, dtype=torch.float64).view(4, 2)
    hidden = torch.tanh(features @ params["a"].view(2, 4) + params["b"])
    return ((hidden.sum(1) - torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=torch.float64)) ** 2).mean() + 0.1


def start(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(4, 2, generator=generator, dtype=torch.float64),
        "b": torch.randn(4, generator=generator, dtype=torch.float64),
    }


def flat(params):
    return torch.cat([value.flatten() for value in params.values()])


def unflatten(vector):
    return {"a": vector[:8].view(4, 2), "b": vector[8:]}


def run(editor, objective, params, num_steps):
    """The trajectory of parameters, with graph, the start included."""
    trajectory, state = [params], editor.init(params)
    for _ in range(num_steps):
        grads = torch.autograd.grad(
            objective(params), list(params.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        updates, state = editor.update(dict(zip(params, grads, strict=True)), state)
        params = apply_updates(params, updates)
        trajectory.append(params)
    return trajectory


def with_grad(params):
    return {name: value.clone().requires_grad_() for name, value in params.items()}


@every_editor
@pytest.mark.parametrize("objective", [ill_conditioned_quadratic, small_mlp])
def test_editor_follows_the_papers_formula(name, objective):
    factory, oracle, alpha, decays = TABLE[name]
    trajectory = run(factory(alpha, *decays), objective, with_grad(start()), 10)
    theta, grads = flat(start()).requires_grad_(), []
    for params in trajectory[1:]:
        grads.append(torch.autograd.grad(objective(unflatten(theta)), theta)[0])
        theta = (theta + oracle(grads, alpha, *decays)).detach().requires_grad_()
        torch.testing.assert_close(flat(params), theta, rtol=0, atol=1e-9)
    assert not torch.allclose(theta, flat(start()), atol=1e-2)


@every_editor
def test_gradcheck_through_three_steps(name):
    factory, _, alpha, decays = TABLE[name]

    def three_steps(theta, *hyperparameters):
        return flat(run(factory(*hyperparameters), small_mlp, unflatten(theta), 3)[-1])

    hyperparameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (alpha, *decays)]
    assert torch.autograd.gradcheck(three_steps, (flat(start()).requires_grad_(), *hyperparameters))


@every_editor
def test_gradient_of_every_hyperparameter_is_nonzero(name):
    factory, _, alpha, decays = TABLE[name]
    hyperparameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (alpha, *decays)]
    end = flat(run(factory(*hyperparameters), small_mlp, with_grad(start()), 3)[-1])
    assert all(grad.abs() > 1e-6 for grad in torch.autograd.grad(end.square().sum(), hyperparameters))


@every_editor
def test_meta_gradient_is_finite_where_a_gradient_coordinate_is_zero(name):
    factory, _, alpha, decays = TABLE[name]
    hyperparameters = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (alpha, *decays)]
    params = with_grad(start())

    def objective(params):  # one coordinate at its minimum, one tensor unused
        return (params["a"].flatten()[1:] ** 4).sum() + (params["a"][0, 0] - params["a"][0, 0].detach()) ** 2

    end = flat(run(factory(*hyperparameters), objective, params, 3)[-1])
    grads = torch.autograd.grad(end.square().sum(), [*params.values(), *hyperparameters])
    assert all(torch.isfinite(grad).all() for grad in grads)


@every_editor
def test_meta_gradient_is_finite_where_the_whole_gradient_is_zero(name):
    factory, _, alpha, decays = TABLE[name]
    params = with_grad(start())
    end = flat(run(factory(alpha, *decays), lambda p: 0 * flat(p).square().sum(), params, 2)[-1])
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(end.square().sum(), list(params.values())))


def test_eps_of_rmsprop_is_inside_the_root():
    assert DEFAULT_EPS == 1e-6
    grads = {"w": torch.tensor([1e-3], dtype=torch.float64)}
    updates, _ = rmsprop(1.0).update(grads, rmsprop(1.0).init(grads))
    assert updates["w"].item() == pytest.approx(-1 / math.sqrt(2))


def test_first_step_of_rmsprop_is_nearly_the_sign():
    params = with_grad(start())
    step = flat(run(rmsprop(0.1), ill_conditioned_quadratic, params, 1)[-1]) - flat(params)
    grad = torch.cat([g.flatten() for g in torch.autograd.grad(ill_conditioned_quadratic(params), params.values())])
    torch.testing.assert_close(step, -0.1 * grad.sign(), rtol=0.02, atol=0)


def test_first_step_of_scaled_gd_has_length_alpha():
    start_params, end_params = run(scaled_gd(0.3), ill_conditioned_quadratic, with_grad(start()), 1)
    assert (flat(end_params) - flat(start_params)).norm().item() == pytest.approx(0.3)


def test_rprop_does_not_move_where_the_gradient_is_zero():
    grads = {"w": torch.tensor([0.0, -3.0, 1e-30])}
    updates, _ = rprop(0.1).update(grads, rprop(0.1).init(grads))
    torch.testing.assert_close(updates["w"], torch.tensor([0.0, 0.1, -0.1]))


@every_editor
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_with_float32_hyperparameters(name, dtype):
    factory, _, alpha, decays = TABLE[name]
    params = {key: value.to(dtype) for key, value in start().items()}
    for hyperparameters in ((alpha, *decays), torch.tensor([alpha, *decays])):
        editor = factory(*hyperparameters)
        state = editor.init(params)
        for _ in range(2):
            updates, state = editor.update(params, state)
        assert {update.dtype for update in updates.values()} == {dtype}


def test_registry_holds_the_six_editors():
    assert set(EDITORS) == set(TABLE)


# LearnableEditor


@every_editor
def test_learnable_editor_starts_at_the_defaults(name):
    learnable = LearnableEditor(name)
    assert learnable.values() == pytest.approx(EDITORS[name].defaults, rel=1e-6)
    assert list(learnable.values())[0] == "learning_rate"


@every_editor
def test_learnable_editor_round_trips_values(name):
    wanted = {key: 0.37 for key in EDITORS[name].defaults} | {"learning_rate": 3e-4}
    learnable = LearnableEditor(name, learn_learning_rate=True, **wanted)
    assert learnable.values() == pytest.approx(wanted, rel=1e-6)


@every_editor
@pytest.mark.parametrize("learn_learning_rate", [False, True])
@pytest.mark.parametrize("learn_decays", [False, True])
def test_learned_are_parameters_and_fixed_are_exact_floats(name, learn_learning_rate, learn_decays):
    learnable = LearnableEditor(name, learn_learning_rate, learn_decays)
    decays = set(EDITORS[name].defaults) - {"learning_rate"}
    learned = (decays if learn_decays else set()) | ({"learning_rate"} if learn_learning_rate else set())
    assert {key for key, _ in learnable.named_parameters()} == learned
    assert set(learnable.state_dict()) == learned
    for key, value in learnable.hyperparameters().items():
        if key in learned:
            assert value.requires_grad and value.shape == ()
        else:
            assert value == EDITORS[name].defaults[key] and type(value) is float


def test_learnable_editor_defaults_are_the_papers_choice():
    learnable = LearnableEditor()
    assert learnable.name == "rmsprop"
    assert learnable.values()["learning_rate"] == 1e-3
    assert [key for key, _ in learnable.named_parameters()] == ["beta"]


def test_unknown_editor():
    with pytest.raises(ValueError, match="Unknown editor 'sgd'. Choose one of: gd, scaled_gd, rprop, rmsprop"):
        LearnableEditor("sgd")


def test_unknown_hyperparameter():
    with pytest.raises(
        ValueError, match="Editor 'rmsprop' has no hyperparameter 'beta1', 'mu'. It has: learning_rate"
    ):
        LearnableEditor("rmsprop", mu=0.5, beta1=0.5)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("gd", "learning_rate", 0.0),
        ("gd", "learning_rate", -1.0),
        ("gd", "learning_rate", math.inf),
        ("gd", "learning_rate", math.nan),
        ("rmsprop", "beta", 0.0),
        ("rmsprop", "beta", 1.0),
        ("momentum", "mu", 1.5),
        ("adam", "beta1", 0.05),
        ("adam", "beta2", 1.0),
    ],
)
def test_value_out_of_range(name, key, value, learn):
    with pytest.raises(ValueError, match=f"`{key}` of editor '{name}' must lie between .* got {value}"):
        LearnableEditor(name, learn_learning_rate=learn, learn_decays=learn, **{key: value})


@every_editor
def test_no_optimizer_step_leaves_the_range(name):
    learnable = LearnableEditor(name, learn_learning_rate=True)
    for shift in (-8.0, 16.0):
        with torch.no_grad():
            for parameter in learnable.parameters():
                parameter.add_(shift)
        for key, value in learnable.values().items():
            low, high = EDITORS[name].bounds.get(key, (0.0, math.inf))
            assert low < value < high
        learnable.build()


def test_saturated_adam_can_still_be_built():
    learnable = LearnableEditor("adam")
    for logit in (-1e4, 1e4):
        with torch.no_grad():
            learnable.get_parameter("beta1").fill_(logit)
        learnable.build()


@every_editor
def test_state_dict_round_trip_is_exact(name):
    source = LearnableEditor(name, learn_learning_rate=True, learning_rate=0.0123)
    target = LearnableEditor(name, learn_learning_rate=True)
    target.load_state_dict(source.state_dict())
    assert target.values() == source.values()


@every_editor
def test_gradient_reaches_the_learned_hyperparameters(name):
    learnable = LearnableEditor(name, learn_learning_rate=True).double()
    end = flat(run(learnable.build(), small_mlp, with_grad(start()), 3)[-1])
    end.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad != 0 for parameter in learnable.parameters())


def test_built_editor_has_the_current_values():
    learnable = LearnableEditor("rmsprop", learn_learning_rate=True).double()
    with torch.no_grad():
        learnable.get_parameter("beta").add_(1.0)
        learnable.get_parameter("learning_rate").add_(1.0)
    values = learnable.values()
    built = run(learnable.build(), small_mlp, with_grad(start()), 3)[-1]
    plain = run(rmsprop(values["learning_rate"], values["beta"]), small_mlp, with_grad(start()), 3)[-1]
    torch.testing.assert_close(flat(built), flat(plain), rtol=0, atol=1e-14)
    assert values["beta"] == pytest.approx(1 / (1 + math.exp(-1.0)))  # logit of 0.5 is 0
    assert values["learning_rate"] == pytest.approx(1e-3 * math.e)


@every_editor
def test_reading_and_building_do_not_warn(name):
    learnable = LearnableEditor(name, learn_learning_rate=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learnable.values()
        learnable.build()
