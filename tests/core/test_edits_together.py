"""Several edits as one program, against the same edits one after another."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model
from tiny_images import image_rows, tiny_resnet
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import ClassConstraint, ContinuationConstraint, LearnableEditor, SequenceConstraint
from editable_hf.core import constraints
from editable_hf.core.editors import EDITORS
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
    "resnet": (resnet, class_constraint),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        (model, layers), make = KINDS[request.param][0](), KINDS[request.param][1]
    return model.double().eval(), layers, [make(seed) for seed in range(3)]


def outcome(kind, editor):
    """Results, and the gradients of a function of all that is differentiable in them."""
    model, layers, requests = kind
    results = edit_each(model, requests, editor.build(), layers, STEPS)
    generator = torch.Generator().manual_seed(1)
    total = sum(number * result.loss for number, result in enumerate(results, start=1))
    for result in results:
        for name, value in result.params.items():
            if name.endswith("k_proj.bias"):  # attention does not depend on it: the sign of its gradient is rounding
                continue
            total = total + (value * torch.randn(value.shape, generator=generator, dtype=value.dtype)).sum()
    leaves = [*(p for p in model.parameters() if p.requires_grad), *editor.parameters()]
    return results, torch.autograd.grad(total, leaves, materialize_grads=True)


@pytest.mark.parametrize("name", EDITORS)
def test_each_edit_is_the_one_made_alone(kind, name, monkeypatch):
    editor = LearnableEditor(name, learn_learning_rate=True, learning_rate=1e-3).double()
    alone, expected = outcome(kind, editor)
    monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", {"cpu"})
    together, grads = outcome(kind, editor)
    print([result.history for result in alone])
    for one, other in zip(together, alone, strict=True):
        assert (one.num_steps, one.success) == (other.num_steps, other.success)
        torch.testing.assert_close(one.history, other.history, rtol=1e-9, atol=1e-9)
        for key, value in other.params.items():
            if not key.endswith("k_proj.bias"):
                torch.testing.assert_close(one.params[key], value, rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)
