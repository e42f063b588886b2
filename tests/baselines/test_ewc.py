from __future__ import annotations

import pytest
import reference
import torch
from safetensors.torch import load_file, save_file
from tiny_images import changed_names, image_rows, snapshot, tiny_extra, tiny_huggingface_resnet, tiny_resnet
from torch.nn import functional as F

from editable_hf.baselines.ewc import EWC_WEIGHTS, diagonal_fisher, ewc, normalize_fisher
from editable_hf.core import EDITORS, ClassConstraint, adam, edit, gd, momentum, rmsprop, select_parameters

LAYERS, STEPS = "chain3", 5


@pytest.fixture
def image():
    return image_rows(1, seed=8)[0]["pixel_values"].unsqueeze(0)


@pytest.fixture
def constraint(image):
    """Of a class that takes the editors of these tests several steps."""
    losses = reference_losses(tiny_resnet(), image)
    return ClassConstraint({"pixel_values": image}, losses.index(max(losses)))


def reference_losses(model, image):
    logits = model(image).logits[0]
    return [reference.class_constraint(logits, target).item() for target in range(len(logits))]


@pytest.fixture
def fisher():
    """Positive, and very different from one parameter to the next."""
    generator = torch.Generator().manual_seed(3)
    params = select_parameters(tiny_resnet(), LAYERS)
    return {name: torch.randn(p.shape, generator=generator).double().exp() for name, p in params.items()}


@pytest.mark.parametrize("name", EDITORS)
def test_weight_of_zero_is_the_plain_editor(name, constraint, fisher):
    spec = EDITORS[name]
    plain = spec.factory(**{**spec.defaults, "learning_rate": spec.defaults["learning_rate"] / 10})
    expected = edit(tiny_resnet(), constraint, plain, LAYERS, STEPS)
    result = edit(tiny_resnet(), constraint, ewc(plain, fisher, 0.0), LAYERS, STEPS)
    assert result.history == expected.history and result.num_steps > 1
    assert all(torch.equal(result.params[key], value) for key, value in expected.params.items())


@pytest.mark.parametrize(
    ("ours", "formula"),
    [
        (gd(2e-3), lambda grads: reference.gd(grads, 2e-3)),
        (rmsprop(1e-4, 0.7), lambda grads: reference.rmsprop(grads, 1e-4, 0.7)),
        (momentum(1e-3, 0.4), lambda grads: reference.momentum(grads, 1e-3, 0.4)),
        (adam(1e-4, 0.3, 0.9), lambda grads: reference.adam(grads, 1e-4, 0.3, 0.9)),
    ],
    ids=["gd", "rmsprop", "momentum", "adam"],
)
def test_edit_descends_the_penalized_loss(ours, formula, image, constraint, fisher):
    """Against the penalized loss written out and differentiated as one expression."""
    weight, model = 30.0, tiny_resnet()
    names = list(fisher)
    start = {name: model.get_parameter(name).detach().clone() for name in names}
    losses, grads = [], []
    for _ in range(STEPS + 1):
        l_e = reference.class_constraint(model(image).logits[0], constraint.target)
        losses.append(l_e.item())
        if l_e <= 0 or len(grads) == STEPS:
            break
        penalty = sum((fisher[name] * (model.get_parameter(name) - start[name]) ** 2).sum() for name in names)
        moved = [model.get_parameter(name) for name in names]
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(l_e + weight * penalty, moved)])
        grads.append(flat)
        with torch.no_grad():
            for param, step in zip(moved, formula(grads).split([p.numel() for p in moved]), strict=True):
                param += step.view_as(param)

    result = edit(tiny_resnet(), constraint, ewc(ours, fisher, weight), LAYERS, STEPS)
    assert result.history == pytest.approx(losses, abs=1e-9) and result.num_steps > 1
    for name in names:
        torch.testing.assert_close(result.params[name], model.get_parameter(name).detach(), rtol=0, atol=1e-9)
    plain = edit(tiny_resnet(), constraint, ours, LAYERS, STEPS)
    assert plain.history[:2] == pytest.approx(result.history[:2], abs=1e-12)  # no penalty yet at theta_0
    assert abs(plain.history[2] - result.history[2]) > 1e-4


def test_important_parameters_move_less(constraint, fisher):
    model = tiny_resnet()
    important = {name: (1e4 if "conv1" in name else 0.0) * torch.ones_like(value) for name, value in fisher.items()}
    plain = edit(model, constraint, rmsprop(1e-4), LAYERS, STEPS).params
    held = edit(model, constraint, ewc(rmsprop(1e-4), important, 1.0), LAYERS, STEPS).params
    for name, value in select_parameters(model, LAYERS).items():
        if "conv1" in name:
            assert (held[name] - value).norm() < 0.7 * (plain[name] - value).norm()


def test_differentiable_in_weight_and_learning_rate(constraint, fisher):
    def loss(weight, alpha, create_graph):
        return edit(tiny_resnet(), constraint, ewc(gd(alpha), fisher, weight), LAYERS, 3, create_graph).loss

    at = torch.tensor([30.0, 1e-3], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(*at, create_graph=True), at)
    for index, width in enumerate((1e-2, 1e-7)):
        offset = width * F.one_hot(torch.tensor(index), 2)
        above, below = (loss(*(at + sign * offset).detach(), create_graph=False) for sign in (1, -1))
        assert gradient[index].item() == pytest.approx(((above - below) / (2 * width)).item(), rel=1e-4) != 0


def test_fisher_that_does_not_fit(constraint, fisher):
    name = list(fisher)[0]
    with pytest.raises(ValueError, match=f"Fisher information of '{name}', of shape .*, is missing. Estimate it"):
        edit(tiny_resnet(), constraint, ewc(gd(1e-3), {}, 1.0), LAYERS)
    with pytest.raises(ValueError, match=r"has shape \(2,\)"):
        edit(tiny_resnet(), constraint, ewc(gd(1e-3), {**fisher, name: torch.ones(2)}, 1.0), LAYERS)


def squared_gradients(model, rows, layers, labels=None):
    """Mean over the rows, one backward at a time."""
    params = select_parameters(model, layers)
    total = {name: torch.zeros_like(param) for name, param in params.items()}
    for index, row in enumerate(rows):
        logits = model(row["pixel_values"].unsqueeze(0)).logits[0]
        log_probability = logits[row["labels"] if labels is None else labels[index]] - logits.logsumexp(0)
        grads = torch.autograd.grad(log_probability, list(params.values()))
        for name, grad in zip(params, grads, strict=True):
            total[name] += grad**2 / len(rows)
    return total


@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (tiny_resnet, "all"),
        (tiny_resnet, "chain3"),
        (tiny_resnet, "layer2.0.bn1.bias"),
        (tiny_huggingface_resnet, "all"),
        (tiny_extra, "extra"),
    ],
)
def test_empirical_fisher_is_that_of_single_backwards(build, layers, rows):
    expected = squared_gradients(build(), rows, layers)
    fisher = diagonal_fisher(build(), rows, layers, batch_size=16, progress=None)  # the last batch is not full
    assert list(fisher) == list(select_parameters(build(), layers))
    for name, value in expected.items():
        torch.testing.assert_close(fisher[name], value, rtol=1e-9, atol=1e-14)
        assert fisher[name].max() > 0 and not fisher[name].requires_grad


def test_mean_is_over_the_sample(rows):
    sample = diagonal_fisher(tiny_resnet(), rows, "head", num_examples=1, progress=None)["linear.weight"]
    single = [squared_gradients(tiny_resnet(), [row], "head")["linear.weight"] for row in rows]
    assert sum(torch.allclose(sample, each, rtol=1e-9, atol=1e-14) for each in single) == 1


def linear_rows(count):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 3, 2, 2, dtype=torch.float64, generator=generator)
    return [{"pixel_values": image, "labels": index % 2} for index, image in enumerate(images)]


def test_both_variants_on_a_softmax_linear_model(linear):
    """With `z = W x`: `d log p(y) / d W_cj = (1[y = c] - p_c) x_j`, whose square has mean `p_c (1 - p_c) x_j^2` over
    the model's own predictions."""
    rows = linear_rows(4_000)
    x = torch.stack([row["pixel_values"].flatten() for row in rows])
    p = linear.linear(x).softmax(-1).detach()
    y = F.one_hot(torch.tensor([row["labels"] for row in rows]), 4)
    empirical = {"weight": ((y - p) ** 2).T @ x**2 / len(x), "bias": ((y - p) ** 2).mean(0)}
    analytic = {"weight": (p * (1 - p)).T @ x**2 / len(x), "bias": (p * (1 - p)).mean(0)}
    true = diagonal_fisher(linear, rows, "linear", batch_size=500, progress=None)
    sampled = diagonal_fisher(linear, rows, "linear", labels="sampled", batch_size=500, progress=None)
    for name in ("weight", "bias"):
        torch.testing.assert_close(true[f"linear.{name}"], empirical[name], rtol=1e-9, atol=0)
        torch.testing.assert_close(sampled[f"linear.{name}"], analytic[name], rtol=0.15, atol=0)
        assert not torch.allclose(empirical[name], analytic[name], rtol=0.3)


def test_sample_and_sampled_labels_depend_on_the_seed_alone(rows):
    def estimate(seed=0, **options):
        torch.rand(7)  # wherever the global generator is
        return diagonal_fisher(tiny_resnet(), rows, "head", seed=seed, progress=None, **options)["linear.weight"]

    state = torch.random.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        for options in ({"num_examples": 10}, {"labels": "sampled"}):
            first = estimate(batch_size=7, **options)
            torch.testing.assert_close(estimate(batch_size=3, **options), first, rtol=1e-9, atol=1e-15)
            assert not torch.allclose(estimate(seed=1, **options), first)
        everything = estimate()
        torch.testing.assert_close(estimate(seed=1), everything, rtol=1e-9, atol=1e-15)
    before = torch.random.get_rng_state()
    assert torch.equal(before, state)
    diagonal_fisher(tiny_resnet(), rows, "head", labels="sampled", num_examples=10, progress=None)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fisher_leaves_the_model_alone(rows):
    model = tiny_resnet().train()
    model.layer1.eval()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    fisher = diagonal_fisher(model, rows, "chain3", labels="sampled", progress=None)
    assert not changed_names(model, before) and [module.training for module in model.modules()] == modes
    expected = diagonal_fisher(tiny_resnet(), rows, "chain3", labels="sampled", progress=None)
    assert all(torch.equal(fisher[name], value) for name, value in expected.items())
    assert all(param.grad is None for param in model.parameters())


def test_normalized_fisher_has_mean_one_and_survives_a_file(fisher, tmp_path):
    normalized = normalize_fisher(fisher)
    flat, old = (torch.cat([value.flatten() for value in each.values()]) for each in (normalized, fisher))
    assert flat.mean().item() == pytest.approx(1)
    torch.testing.assert_close(flat / flat[0], old / old[0])
    save_file(normalized, tmp_path / "fisher.safetensors")
    loaded = load_file(tmp_path / "fisher.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in normalized.items())
    with pytest.raises(ValueError, match="0 everywhere"):
        normalize_fisher({"x": torch.zeros(3)})


def test_weights_to_search_balance_the_two_gradients(constraint, rows):
    """From hardly any penalty to one that outweighs `l_e`, after a step of either editor."""
    model = tiny_resnet()
    fisher = normalize_fisher(diagonal_fisher(model, rows, LAYERS, progress=None))
    params = select_parameters(model, LAYERS)
    grads = dict(zip(params, torch.autograd.grad(loss_of(model, constraint), list(params.values())), strict=True))
    for editor in (gd(3e-4), rmsprop(3e-4)):
        step, _ = editor.update(grads, editor.init(params))
        penalty = sum((2 * fisher[name] * step[name]).square().sum() for name in params).sqrt()
        ratio = penalty / sum(grad.square().sum() for grad in grads.values()).sqrt()
        assert EWC_WEIGHTS[0] * ratio < 0.2 and EWC_WEIGHTS[1] * ratio > 5


def loss_of(model, constraint):
    return reference.class_constraint(model(**constraint.inputs).logits[0], constraint.target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "empirical"}, "`labels` must be one of 'true', 'sampled', got 'empirical'"),
        ({"num_examples": 41}, "`num_examples` must be from 1 to the 40 rows of the data, got 41"),
        ({"num_examples": 0}, "got 0"),
    ],
)
def test_wrong_arguments(rows, options, message):
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(tiny_resnet(), rows, "head", progress=None, **options)
