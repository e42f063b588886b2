"""How many kernels an edit dispatches: the same number on every machine, and what its time on a GPU follows."""

from __future__ import annotations

import pytest
import torch
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import JointConstraint, SequenceConstraint, edit, rmsprop
from editable_hf.core import constraints
from editable_hf.core.editors import Editor
from editable_hf.core.flat import FlatLayout
from editable_hf.experiments.timing import count_kernels

TOO_WEAK = 1e-9  # no edit succeeds, so that all steps are taken


@pytest.fixture
def one_pass(monkeypatch):
    """As on a GPU: all sequences are scored in one pass."""
    monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", {"cpu"})


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MarianMTModel(marian_config()).double().eval()


def constraint(seed=0, length_penalty=0.0):
    generator = torch.Generator().manual_seed(seed)
    target, *alternatives = (
        [*torch.randint(3, 40, (length,), generator=generator).tolist(), 2] for length in (6, 4, 7, 5, 6)
    )
    ids = torch.randint(3, 40, (1, 5), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return SequenceConstraint.from_ids(
        inputs, target, alternatives, decoder_start_token_id=1, pad_token_id=1, length_penalty=length_penalty
    )


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("create_graph", [False, True])
def test_one_pass_and_two_are_the_same_edit(model, monkeypatch, create_graph, length_penalty):
    results = []
    for devices in ({"cuda"}, {"cpu"}):
        monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", devices)
        result = edit(
            model, constraint(length_penalty=length_penalty), rmsprop(1e-4), "last_decoder_layer", 4, create_graph
        )
        gradient = None
        if create_graph:
            weight = model.model.decoder.layers[0].fc1.weight  # before the edited layer
            (gradient,) = torch.autograd.grad(result.loss, weight)
        results.append((result, gradient))
    (two, by_two), (one, by_one) = results
    torch.testing.assert_close(one.history, two.history, rtol=1e-10, atol=1e-10)
    for name, value in two.params.items():
        torch.testing.assert_close(one.params[name], value, rtol=1e-9, atol=1e-10)
    if create_graph:
        torch.testing.assert_close(by_one, by_two, rtol=1e-8, atol=1e-10)


def test_one_pass_serves_several_constraints(model, one_pass):
    joint = JointConstraint([constraint(0), constraint(1)])
    result = edit(model, joint, rmsprop(1e-2), "last_decoder_layer", 40)
    assert result.success


def test_too_many_logits_are_not_kept(model, one_pass, monkeypatch):
    calls = []
    monkeypatch.setattr(constraints, "SequenceBatch", lambda *args: calls.append(args))
    monkeypatch.setattr(constraints, "MOST_LOGITS", 100)
    assert edit(model, constraint(), rmsprop(1e-3), "last_decoder_layer", 1).num_steps == 1 and not calls


def test_kernels_of_a_step(model, one_pass):
    """A step of two decoder layers: the layer forward and backward, and one vector of all edited parameters."""
    counts = [
        count_kernels(lambda: edit(model, constraint(), rmsprop(TOO_WEAK), "last_decoder_layer", steps))  # noqa: B023
        for steps in (1, 3)
    ]
    assert counts[1] - counts[0] <= 2 * 150, counts


def test_editor_costs_the_same_for_many_tensors(model, one_pass):
    def step(layers):
        return count_kernels(lambda: edit(model, constant, rmsprop(TOO_WEAK), layers, 3))

    def constant(functional_model, params):
        return sum(param.sum() for param in params.values())

    few = step("model.decoder.layers.1.fc1.weight")
    many = step("last_decoder_layer")
    # Each further tensor adds what the constraint itself costs: its sum, the addition and the gradient, no more.
    assert many - few <= 4 * 25 * 4


def test_editor_that_looks_at_names_is_given_them(model):
    seen = []

    def update(grads, state):
        seen.append(set(grads))
        return {name: -1e-3 * grad for name, grad in grads.items()}, state

    edit(model, constraint(), Editor(lambda params: None, update), "last_decoder_layer", 1)
    assert any(name.endswith("fc1.weight") for name in seen[0])


def test_layout_keeps_names_shapes_and_values():
    tensors = {"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16(), "c": torch.randn(()), "d": torch.randn(0, 2)}
    layout = FlatLayout(tensors)
    packed = layout.pack(tensors)
    assert sorted(vector.numel() for vector in packed.values()) == [4, 7]
    unpacked = layout.unpack(packed)
    assert list(unpacked) == list(tensors)
    assert all(torch.equal(unpacked[name], tensors[name]) for name in tensors)
