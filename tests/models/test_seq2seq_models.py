"""Every encoder-decoder of transformers that translates text can be edited, trained to be editable, and patched."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from seq2seq_models import FLOAT32, build_seq2seq_models

from editable_hf import (
    EditableSeq2SeqTrainer,
    EditableSeq2SeqTrainingArguments,
    EditorConfig,
    edit,
    edited,
    request_constraint,
    rmsprop,
    select_parameters,
)
from editable_hf.patches import Patch, apply_patches, revert_patches

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
    constraint = request_constraint(REQUEST, model)
    first, second = (edit(model, constraint, rmsprop(1e-2), LAYERS, 3, replay=replay) for replay in (True, False))
    assert first.num_steps > 0 and first.failure is None and first.history[-1] < first.history[0]
    torch.testing.assert_close(first.history, second.history, rtol=tolerance, atol=tolerance)
    source = torch.tensor([REQUEST["input_ids"]])
    with edited(model, first):
        model.generate(input_ids=source, attention_mask=torch.ones_like(source), max_new_tokens=4, num_beams=2)


@every_model
def test_feed_forward_part_of_the_last_layer(name):
    model, _ = build(name)
    layer, part = (select_parameters(model, layers) for layers in (LAYERS, "last_decoder_mlp"))
    assert 0 < len(part) < len(layer) and part.keys() < layer.keys()
    assert not [key for key in part if "attention" in key.lower() or "attn" in key.lower()]
    widths = {param.shape for param in part.values() if param.dim() == 2}
    assert widths, "the weights of its linear layers are there"


def trained(name, replay, folder):
    """Gradients after one step of Editable Training."""
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
    return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}, tolerance


@every_model
def test_training_step_with_replay_is_that_without(name, tmp_path):
    (first, tolerance), (second, _) = (trained(name, replay, tmp_path) for replay in (True, False))
    assert first.keys() == second.keys() and any(grad.abs().sum() > 0 for grad in first.values())
    for key, grad in first.items():
        assert grad.isfinite().all(), key
        torch.testing.assert_close(grad, second[key], rtol=tolerance, atol=tolerance, msg=key)


@every_model
def test_patch(name, tmp_path):
    model, _ = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = edit(model, request_constraint(REQUEST, model), rmsprop(1e-2), LAYERS, 3)
    patch = Patch.from_edit(model, result, request=REQUEST, editor=EditorConfig(), layers=LAYERS)
    patch.save_pretrained(tmp_path / "patch")
    apply_patches(model, [str(tmp_path / "patch")])
    own = dict(model.named_parameters())
    assert all(torch.equal(own[key], value) for key, value in result.params.items())
    revert_patches(model)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_page_lists_what_is_tested():
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    assert sorted(rows) == sorted(MODELS)
