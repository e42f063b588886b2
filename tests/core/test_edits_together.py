"""Several edits as one program, against the same edits one after another."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model
from tiny_images import image_rows, tiny_resnet
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import (
    ClassConstraint,
    ContinuationConstraint,
    JointConstraint,
    LearnableEditor,
    SequenceConstraint,
    rmsprop,
)
from editable_hf.core import constraints
from editable_hf.core.edited_batch import EditGroups
from editable_hf.core.editors import EDITORS, Editor
from editable_hf.core.edits_together import edit_each

STEPS = 3


def ids(generator, length):
    return torch.randint(3, 40, (length,), generator=generator).tolist()


def marian():
    return MarianMTModel(marian_config()), "last_decoder_layer"


def sequence_constraint(seed):
    generator = torch.Generator().manual_seed(seed)
    source = torch.tensor([ids(generator, 4 + seed)])
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}
    target, *others = ([*ids(generator, length), 2] for length in (6 - seed, 4, 7, *[5] * seed))
    return SequenceConstraint.from_ids(inputs, target, others, decoder_start_token_id=1, pad_token_id=1)


def llama():
    return causal_model("llama"), "last_decoder_layer"


def gpt2():
    return causal_model("gpt2"), "last_decoder_layer"


def continuation_constraint(seed):
    generator = torch.Generator().manual_seed(seed)
    prompt, target, *others = (ids(generator, length) for length in (3 + seed, 3, 2, *[4] * seed))
    return ContinuationConstraint.from_ids(prompt, target, others, pad_token_id=1)


def resnet():
    return tiny_resnet(), "chain3"


def class_constraint(seed):
    return ClassConstraint({"pixel_values": image_rows(1, seed)[0]["pixel_values"].unsqueeze(0)}, seed)


KINDS = {
    "marian": (marian, sequence_constraint),
    "llama": (llama, continuation_constraint),
    "gpt2": (gpt2, continuation_constraint),
    "resnet": (resnet, class_constraint),
}


# By what a test is called: the model, its constraints, editors.
CASES = [
    *(("resnet", name) for name in EDITORS),
    *(("marian", name) for name in ("rmsprop", "momentum")),
    ("llama", "rmsprop"),
    ("gpt2", "rmsprop"),
]


@pytest.fixture(scope="module")
def kinds():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {name: (*build(), make) for name, (build, make) in KINDS.items()}
    return {
        name: (model.double().eval(), layers, [make(seed) for seed in range(3)])
        for name, (model, layers, make) in made.items()
    }


def outcome(kind, editor):
    """Results, and the gradients of a function of all that is differentiable in them."""
    model, layers, requests = kind
    results = edit_each(model, requests, editor.build(), layers, STEPS)
    generator = torch.Generator().manual_seed(1)
    total = sum(number * result.loss for number, result in enumerate(results, start=1))
    for result in results:
        for value in result.params.values():
            total = total + (value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum()
    leaves = [*(p for p in model.parameters() if p.requires_grad), *editor.parameters()]
    return results, torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_each_edit_is_the_one_made_alone(kinds, kind, name, monkeypatch):
    rounding = 1e-6 if kind == "llama" else 1e-9  # Llama normalizes in float32
    editor = LearnableEditor(name, learn_learning_rate=True, learning_rate=2.5e-3).double()
    alone, expected = outcome(kinds[kind], editor)
    monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", {"cpu"})
    together, grads = outcome(kinds[kind], editor)
    print([result.history for result in alone])
    for one, other in zip(together, alone, strict=True):
        assert (one.num_steps, one.success) == (other.num_steps, other.success)
        torch.testing.assert_close(one.history, other.history, rtol=rounding, atol=rounding)
        torch.testing.assert_close(one.params, other.params, rtol=rounding, atol=rounding)
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=10 * rounding)


@pytest.fixture
def marian_edits(kinds, monkeypatch):
    """Edits as on a GPU."""
    monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", {"cpu"})
    model, _, requests = kinds["marian"]
    return lambda layers="last_decoder_layer", editor=None, requests=requests: edit_each(
        model, requests, editor or rmsprop(1e-3), layers, 1
    )


def test_as_many_at_once_as_memory_holds(marian_edits, monkeypatch):
    counts, made = [], EditGroups.__init__
    monkeypatch.setattr(EditGroups, "__init__", lambda self, count: (counts.append(count), made(self, count))[0])
    expected = [result.history for result in marian_edits()]
    monkeypatch.setattr(constraints, "MOST_LOGITS", 2 * 5 * 8 * 40)
    torch.testing.assert_close([result.history for result in marian_edits()], expected, rtol=1e-9, atol=1e-9)
    assert counts == [3, 2]


def test_what_cannot_go_together_goes_apart(marian_edits, kinds):
    def update(grads, state):
        return {name: -1e-3 * grad for name, grad in grads.items()}, state

    requests = kinds["marian"][2]
    with pytest.warns(UserWarning, match="one after another: `model.decoder.embed_positions.weight` cannot be edited"):
        assert len(marian_edits("model.decoder.embed_positions.weight")) == 3
    assert [result.num_steps for result in marian_edits(editor=Editor(lambda params: None, update))] == [1, 0, 1]
    joint = [JointConstraint(requests[:2]), JointConstraint(requests[2:])]
    assert [result.num_steps for result in marian_edits(requests=joint)] == [1, 1]


def test_one_that_is_not_finite_ends_alone(marian_edits, kinds):
    update = rmsprop(1e-3).update

    def explode(grads, state):
        updates, state = update(grads, state)
        return {name: value.where(value.abs() < 9e-4, torch.nan) for name, value in updates.items()}, state

    broken = Editor(rmsprop(1e-3).init, explode, lambda layout: broken)
    results = marian_edits(editor=broken)
    assert [result.failure is None for result in results] == [False, True, False]
    assert all(value.isfinite().all() for result in results for value in result.params.values())
