"""Every encoder-decoder of transformers that translates text can be edited, trained to be editable, and patched."""

from __future__ import annotations

import pytest
import torch
from architecture_checks import check_patch, check_replay_in_edit, check_review, check_same_gradients, check_saved
from seq2seq_models import FLOAT32, NumberTokenizer, build_seq2seq_models
from transformers import AutoModelForSeq2SeqLM

from editable_hf import (
    EditableSeq2SeqTrainer,
    EditableSeq2SeqTrainingArguments,
    edit,
    edited,
    request_constraint,
    rmsprop,
    select_parameters,
)
from editable_hf.review.translations import review_translations

# Routers of experts convert themselves at each call, which looks at the gradient of a tensor that is edited.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

MODELS = build_seq2seq_models()
LAYERS = "last_decoder_layer"
REQUEST = {"input_ids": [5, 6, 7, 8, 2], "labels": [4, 5, 6, 2], "alternatives": [[9, 8, 2], [9, 9, 5, 2]]}
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 10, 2]]),
    "attention_mask": torch.ones(2, 4, dtype=torch.long),
    "labels": torch.tensor([[4, 5, 2], [6, 7, 2]]),
}


def build(name):
    """The model in eval mode, and how far two ways to the same number may be apart; T5's norms are in float32."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().eval()
    exact = name not in FLOAT32 and "T5" not in name
    return (model if name in FLOAT32 else model.double()), 1e-9 if exact else 2e-4


every_model = pytest.mark.parametrize("name", sorted(MODELS))


@every_model
def test_edit(name):
    model, tolerance = build(name)
    result = check_replay_in_edit(model, REQUEST, LAYERS, tolerance)
    ids = torch.tensor([REQUEST["input_ids"]])
    with edited(model, result):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, num_beams=2)


@every_model
def test_last_block_and_head(name):
    model, _ = build(name)
    assert select_parameters(model, "last_block").keys() == select_parameters(model, LAYERS).keys()
    head = select_parameters(model, "head")
    assert [value.shape[0] for value in head.values()] == [40] * len(head) and 0 < len(head) <= 2
    with torch.no_grad():
        for value in head.values():
            value.zero_()
        assert not model(input_ids=BATCH["input_ids"], decoder_input_ids=BATCH["input_ids"]).logits.any()


@every_model
def test_feed_forward_part_of_the_last_layer(name):
    model, _ = build(name)
    layer, part = (select_parameters(model, layers) for layers in (LAYERS, "last_decoder_mlp"))
    assert 0 < len(part) < len(layer) and part.keys() < layer.keys()
    assert not [key for key in part if "attention" in key.lower() or "attn" in key.lower()]
    widths = {param.shape for param in part.values() if param.dim() == 2}
    assert widths, "the weights of its linear layers are there"


def trained(name, replay, folder):
    """The trainer after one step of Editable Training."""
    model, tolerance = build(name)
    args = EditableSeq2SeqTrainingArguments(
        str(folder), edit_learning_rate=1e-3, edit_max_steps=2, replay=replay, reuse_base_forward=replay, report_to=[],
        use_cpu=True,
    )  # fmt: skip
    trainer = EditableSeq2SeqTrainer(
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
    inputs = {"input_ids": BATCH["input_ids"], "decoder_input_ids": BATCH["input_ids"]}
    check_saved(trainer, AutoModelForSeq2SeqLM, LAYERS, inputs, tmp_path / "model", tolerance)


@every_model
def test_patch(name, tmp_path):
    model, _ = build(name)
    check_patch(model, REQUEST, LAYERS, tmp_path / "patch")


SENTENCES = ["5 6 7 8", "9 5", "12 13 14 15 16"]


@every_model
def test_review_is_that_of_generating_twice(name):
    model, _ = build(name)
    tokenizer = NumberTokenizer(model.config)
    result = edit(model, request_constraint(REQUEST, model), rmsprop(0.1), LAYERS, 3)

    def translations():
        limit = int(1.5 * 6) + 10  # of the longest sentence, with its end
        options = {"num_beams": 2, "early_stopping": True, "do_sample": False, "max_new_tokens": limit}
        inputs = tokenizer.pad(tokenizer(SENTENCES), return_tensors="pt")
        return tokenizer.batch_decode(model.generate(**inputs, **options), skip_special_tokens=True)

    before = translations()
    with edited(model, result):
        after = translations()
    review = review_translations(model, tokenizer, result.params, SENTENCES, SENTENCES, num_beams=2)
    check_review(review, before, after)


@every_model
def test_capacity_of_experts_is_left_alone(name):
    model, _ = build(name)
    routers = [module for module in model.modules() if hasattr(module, "expert_capacity")]
    assert bool(routers) == (name in ("NllbMoe", "SwitchTransformers"))
    edit(model, request_constraint(REQUEST, model), rmsprop(1e-2), LAYERS, 1)
    assert all(router.expert_capacity == 64 for router in routers)
