"""The health of a language model that carries patches."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model

from editable_hf import EditorConfig, edited
from editable_hf.core.editing import EditResult
from editable_hf.core.selection import select_parameters
from editable_hf.data.tokenizer import train_causal_tokenizer
from editable_hf.evaluation.held_out_text import HeldOutText
from editable_hf.patches import Patch, apply_patches, revert_patches
from editable_hf.review.health import health_of_stack

TEXTS = ["The tower of Arnamur is in Lim.", "Arnamur is in Oslo."]
LAYERS = "layers.1.mlp.down_proj.weight"


@pytest.fixture
def tokenizer():
    return train_causal_tokenizer(TEXTS, 280)


@pytest.fixture
def model(tokenizer):
    return causal_model("llama", vocab_size=len(tokenizer), max_position_embeddings=64)


@pytest.fixture
def patches(model):
    """Three, each of which moves the weight by the same matrix."""
    (name,), found = select_parameters(model, LAYERS), []
    change = 0.2 * torch.randn(model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        result = EditResult({name: model.get_parameter(name).detach() + change}, True, 1, None, [1.0, -1.0])
        found.append(Patch.from_edit(model, result, request="made up", editor=EditorConfig(), layers=LAYERS))
        apply_patches(model, found[-1])
    revert_patches(model, 3)
    return found


def test_measured_after_each_patch(model, tokenizer, patches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = health_of_stack(model, tokenizer, patches, TEXTS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [each.num_patches for each in found] == [0, 1, 2, 3] and all(each.healthy for each in found)
    text = HeldOutText(model, tokenizer(TEXTS)["input_ids"], LAYERS)
    (name,) = select_parameters(model, LAYERS)
    apply_patches(model, patches[:2])
    both = {name: model.get_parameter(name).detach().clone()}
    revert_patches(model, 2)
    assert (found[2].kl, found[2].perplexity) == tuple(text.change(both))
    with edited(model, both):
        assert found[2].perplexity == pytest.approx(
            HeldOutText(model, tokenizer(TEXTS)["input_ids"], LAYERS).perplexity
        )
    assert 0 == found[0].kl < found[1].kl < found[2].kl


@pytest.mark.parametrize("bound", ["max_kl", "max_perplexity"])
def test_stops_at_the_patch_that_leaves_the_bound(model, tokenizer, patches, bound):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    values = [getattr(each, bound[4:]) for each in health_of_stack(model, tokenizer, patches, TEXTS)]
    limit = max(values[:2])
    assert limit < values[2]  # else the bound would not be left by the second
    found = health_of_stack(model, tokenizer, patches, TEXTS, **{bound: limit})
    assert [each.healthy for each in found] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_perplexity_without_patches_is_no_fault_of_theirs(model, tokenizer, patches):
    (start, *_) = health_of_stack(model, tokenizer, patches, TEXTS)
    with pytest.raises(ValueError, match="on this text without any patch, above the 1.5 allowed"):
        health_of_stack(model, tokenizer, patches, TEXTS, max_perplexity=1.5)
    assert start.perplexity > 1.5


def test_no_patch(model, tokenizer):
    with pytest.raises(ValueError, match="no patch to check"):
        health_of_stack(model, tokenizer, [], TEXTS)


def test_patch_is_taken_back_where_measuring_fails(model, tokenizer, patches, monkeypatch):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calls, own = [], HeldOutText.change

    def change(self, params):
        calls.append(params)
        if len(calls) == 3:
            raise MemoryError
        return own(self, params)

    monkeypatch.setattr(HeldOutText, "change", change)
    with pytest.raises(MemoryError):
        health_of_stack(model, tokenizer, patches, TEXTS)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_texts_are_cut_to_what_the_model_reads(tokenizer):
    model = causal_model("gpt2", vocab_size=len(tokenizer), n_positions=8)
    tokenizer.model_max_length = 8
    name = "transformer.h.1.mlp.c_proj.weight"
    result = EditResult({name: 1.1 * model.get_parameter(name).detach()}, True, 1, None, [1.0, -1.0])
    patch = Patch.from_edit(model, result, request="made up", editor=EditorConfig(), layers=name)
    short = [row[:8] for row in tokenizer(TEXTS)["input_ids"]]
    assert max(map(len, tokenizer(TEXTS)["input_ids"])) > 8
    assert (
        health_of_stack(model, tokenizer, [patch], TEXTS)[0].perplexity == HeldOutText(model, short, name).perplexity
    )
