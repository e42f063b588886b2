"""Every kind of causal language model can be edited, trained to be editable, and patched."""

from __future__ import annotations

import pytest
import torch
from architecture_checks import check_patch, check_replay_in_edit, check_review, check_same_gradients, check_saved
from causal_models import CAUSAL_MODELS, causal_model
from seq2seq_models import NumberTokenizer
from transformers import AutoModelForCausalLM

from editable_hf import (
    EditableCausalLMTrainer,
    EditableCausalLMTrainingArguments,
    edit,
    edited,
    request_constraint,
    rmsprop,
    select_parameters,
)
from editable_hf.review.continuations import review_continuations

LAYERS = "last_decoder_mlp"
REQUEST = {"input_ids": [5, 6, 7], "labels": [10, 11, 2], "alternatives": [[12, 2], [13], [14, 15, 16, 17]]}
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]]),
    "attention_mask": torch.ones(2, 4, dtype=torch.long),
    "labels": torch.tensor([[-100, 6, 7, 2], [8, 9, 10, 2]]),
}
# No part of these is computed in single precision where the weights are in double.
EXACT = {"biogpt", "codegen", "falcon", "gpt2", "gpt_neox", "gptj", "opt", "phi", "stablelm", "starcoder2"}
FLOAT32 = {"bloom", "mixtral", "qwen2_moe", "xglm"}  # run in single precision alone

every_model = pytest.mark.parametrize("name", sorted(CAUSAL_MODELS))


def build(name):
    """The model, and how far two ways to the same number may be apart."""
    model = causal_model(name)
    return (model if name in FLOAT32 else model.double()), 1e-9 if name in EXACT else 2e-4


@every_model
def test_edit(name):
    model, tolerance = build(name)
    result = check_replay_in_edit(model, REQUEST, LAYERS, tolerance)
    ids = torch.tensor([REQUEST["input_ids"]])
    with edited(model, result):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, num_beams=2)


@every_model
def test_parts(name):
    model, _ = build(name)
    layer, block, part = (select_parameters(model, each) for each in ("last_decoder_layer", "last_block", LAYERS))
    assert layer.keys() == block.keys() and 0 < len(part) < len(layer) and part.keys() < layer.keys()
    assert all(".1." in key for key in layer), "of the two layers the second"
    assert not [key for key in part if "attention" in key.lower() or "attn" in key.lower()]
    (head,) = (value for key, value in select_parameters(model, "head").items() if value.dim() == 2)
    assert head is model.get_output_embeddings().weight


def trained(name, replay, folder):
    """The trainer after one step of Editable Training."""
    model, tolerance = build(name)
    args = EditableCausalLMTrainingArguments(
        str(folder), edit_learning_rate=1e-3, edit_max_steps=2, replay=replay, reuse_base_forward=replay, report_to=[],
        use_cpu=True,
    )  # fmt: skip
    trainer = EditableCausalLMTrainer(
        model, args, train_dataset=[0], edit_dataset=[REQUEST], data_collator=lambda rows: rows
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(model, dict(BATCH))
    return trainer, tolerance


@every_model
def test_training_step_with_replay_is_that_without(name, tmp_path):
    (first, tolerance), (second, _) = (trained(name, replay, tmp_path) for replay in (True, False))
    check_same_gradients([first.model, second.model], tolerance)


@every_model
def test_saved_and_loaded(name, tmp_path):
    trainer, tolerance = trained(name, True, tmp_path / "run")
    inputs = {"input_ids": BATCH["input_ids"]}
    check_saved(trainer, AutoModelForCausalLM, LAYERS, inputs, tmp_path / "model", tolerance)


@every_model
def test_patch(name, tmp_path):
    model, _ = build(name)
    check_patch(model, REQUEST, LAYERS, tmp_path / "patch")


PROMPTS = ["5 6 7 8", "9 5", "12 13 14 15 16"]


@every_model
def test_review_is_that_of_generating_twice(name):
    model, _ = build(name)
    tokenizer = NumberTokenizer(model.config)
    result = edit(model, request_constraint(REQUEST, model), rmsprop(0.3), LAYERS, 3)

    def continuations():
        texts = []
        for ids in tokenizer(PROMPTS)["input_ids"]:
            prompt = torch.tensor([ids])
            (row,) = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8)
            texts.append(tokenizer.decode(row[len(ids) :], skip_special_tokens=True))
        return texts

    before = continuations()
    with edited(model, result):
        after = continuations()
    review = review_continuations(model, tokenizer, result.params, PROMPTS, PROMPTS, max_new_tokens=8)
    check_review(review, before, after)
