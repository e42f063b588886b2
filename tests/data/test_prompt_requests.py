"""Requests of decoder-only models: what to say after a prompt."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model
from transformers import BertConfig, BertLMHeadModel

from editable_hf import EditorConfig, edited, make_edit_requests, request_constraint, rmsprop
from editable_hf.data.continuations import continue_prompts
from editable_hf.evaluation.verified_edit import verified_edit
from editable_hf.patches.making import patch_of
from editable_hf.patches.patch import Patch
from editable_hf.patches.stack import apply_patches, revert_patches


@pytest.fixture(params=["gpt2", "llama"])
def model(request, tokenizer):
    return causal_model(request.param, vocab_size=len(tokenizer), max_position_embeddings=40)


def test_alternatives_are_the_beams_as_long_as_the_target(model, tokenizer, sentence_pairs):
    prompt, target = sentence_pairs[1][0], " ".join(sentence_pairs[1][1].split()[:2])
    (row,) = make_edit_requests(model, tokenizer, [prompt], targets=[target], num_alternatives=4, progress=None)
    assert row["source"] == prompt and row["target"] == target
    assert row["input_ids"] == tokenizer(prompt)["input_ids"]
    assert row["labels"] == tokenizer(target, add_special_tokens=False)["input_ids"]
    assert 3 <= len(row["alternatives"]) <= 4
    assert all(0 < len(each) <= len(row["labels"]) for each in row["alternatives"])
    constraint = request_constraint(row, model)
    assert constraint.labels.shape[0] == 1 + len(row["alternatives"])


def test_model_that_sees_what_follows_is_refused(tokenizer):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    row = {"input_ids": [3], "labels": [4], "alternatives": [[5]]}
    for decoder in (False, True):
        model = BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), is_decoder=decoder, **shape))
        if decoder:
            assert request_constraint(row, model).labels.shape == (2, 2)
            continue
        with pytest.raises(TypeError, match="Expected a causal language model, got BertLMHeadModel of a bert"):
            request_constraint(row, model)
        with pytest.raises(TypeError, match="whose tokens see those after them"):
            make_edit_requests(model, tokenizer, ["the dog"], targets=["sees"])


def test_targets_must_be_given(model, tokenizer):
    with pytest.raises(ValueError, match="Give `targets`"):
        make_edit_requests(model, tokenizer, ["the dog"])
    with pytest.raises(ValueError, match="`length_penalty` 0"):
        request_constraint({"input_ids": [3], "labels": [4], "alternatives": [[5]]}, model, length_penalty=1.0)


def test_verified_edit_says_the_target_and_becomes_a_patch(model, tokenizer, sentence_pairs, tmp_path):
    prompts, targets = sentence_pairs[1][:1], [sentence_pairs[1][2].split()[1]]
    rows = list(make_edit_requests(model, tokenizer, prompts, targets=targets, num_alternatives=4, progress=None))
    config = EditorConfig(layers=["last_decoder_mlp"])
    before = continue_prompts(model, tokenizer, prompts)
    outcome = verified_edit(model, tokenizer, rows, rmsprop(1e-2), config.layers, max_steps=100, max_rounds=30)
    assert outcome.all_verified
    assert continue_prompts(model, tokenizer, prompts) == before
    with edited(model, outcome.result):
        said = continue_prompts(model, tokenizer, prompts)
    for text, target in zip(said, targets, strict=True):
        assert text.strip().startswith(target)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    patch_of(model, outcome, config).save_pretrained(tmp_path / "patch")
    apply_patches(model, Patch.from_pretrained(tmp_path / "patch"))
    assert continue_prompts(model, tokenizer, prompts) == said
    revert_patches(model, 1)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_prompts_are_continued_as_one_by_one(model, tokenizer, sentence_pairs):
    prompts = [*sentence_pairs[1][:5], sentence_pairs[1][0].split()[0]]
    together = continue_prompts(model, tokenizer, prompts, max_new_tokens=6)
    alone = [continue_prompts(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert together == alone and len(set(together)) > 1
