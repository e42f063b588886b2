"""Editable Training of decoder-only models."""

from __future__ import annotations

import pytest
import torch
from causal_models import causal_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from editable_hf import (
    EditableCausalLMTrainer,
    EditableCausalLMTrainingArguments,
    EditorConfig,
    JointConstraint,
    edit,
    request_constraint,
    rmsprop,
)

ROWS = [{"input_ids": [3 + i, 4 + i, 9, 7 + i], "attention_mask": [1] * 4} for i in range(8)]
REQUESTS = [
    {"input_ids": [3 + i, 5, 8], "labels": [10 + i, 2], "alternatives": [[12, 2], [13 + i, 4]]} for i in range(4)
]


def make_trainer(model, folder, edit_dataset=REQUESTS, **options):
    defaults = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "edit_learning_rate": 1e-2}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
    args = EditableCausalLMTrainingArguments(str(folder), **{**defaults, **quiet, "edit_max_steps": 3, **options})
    return EditableCausalLMTrainer(
        model, args, train_dataset=[{**row, "labels": row["input_ids"]} for row in ROWS], edit_dataset=edit_dataset
    )


def batch():
    rows = {key: torch.tensor([row[key] for row in ROWS[:4]]) for key in ROWS[0]}
    return {**rows, "labels": rows["input_ids"]}


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom"])
def test_gradients_are_those_without_replay(tmp_path, name):
    gradients = []
    for replay in (True, False):
        model = causal_model(name).double()
        trainer = make_trainer(model, tmp_path, replay=replay, reuse_base_forward=False)
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        model.train()
        trainer.compute_loss(model, batch()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 5
    # Bloom's attention is computed in single precision, whatever that of the model.
    tolerances = {"rtol": 1e-4, "atol": 1e-7} if name == "bloom" else {"rtol": 1e-9, "atol": 1e-12}
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][parameter], **tolerances)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_trains_and_is_saved(tmp_path, name):
    model = causal_model(name)
    trainer = make_trainer(model, tmp_path)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "base_loss" in entry]
    assert len(logs) == 2 and all(0 <= entry["edit_num_steps"] <= 3 for entry in logs)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    config = EditorConfig.from_pretrained(tmp_path / "saved")
    assert config.layers == ["last_decoder_mlp"]
    for key, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    prompt, one, other = [3, 5, 8], [10, 2], [12, 2]
    pairs = ((one, other), (other, one))  # one of them is a mistake
    requests = [{"input_ids": prompt, "labels": good, "alternatives": [bad]} for good, bad in pairs]
    results = [
        edit(loaded, request_constraint(each, loaded), config.build_editor(), config.layers) for each in requests
    ]
    assert all(each.success for each in results) and any(each.num_steps > 0 for each in results)


def test_base_loss_is_that_of_trainer(tmp_path):
    model = causal_model("llama").eval()
    labels = batch()["labels"].clone()
    labels[:, :2] = -100
    ours = make_trainer(model, tmp_path, edit_dataset=None)
    stock = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    inputs = {**batch(), "labels": labels}
    assert ours.compute_loss(model, inputs).item() == pytest.approx(stock.compute_loss(model, inputs).item(), rel=1e-6)


def test_updates_are_those_of_trainer_without_edits(tmp_path):
    weights = []
    for make in (EditableCausalLMTrainer, Trainer):
        model = causal_model("llama")
        kind = EditableCausalLMTrainingArguments if make is EditableCausalLMTrainer else TrainingArguments
        args = kind(
            str(tmp_path), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True,
            report_to="none", disable_tqdm=True, save_strategy="no", learning_rate=1e-2, optim="sgd",
            max_grad_norm=0.0,
        )  # fmt: skip
        labeled = [{**row, "labels": [-100] * (i % 3) + row["input_ids"][i % 3 :]} for i, row in enumerate(ROWS)]
        make(model, args, train_dataset=labeled).train()
        weights.append({n: p for n, p in model.named_parameters() if not n.startswith("editor.")})
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[0][name], value, rtol=1e-5, atol=1e-6)


def test_locality_counts_the_tokens_that_labels_name(tmp_path):
    trainer = make_trainer(causal_model("gpt2"), tmp_path)
    reference, logits = torch.randn(2, 1, 4, 40, generator=torch.Generator().manual_seed(0))
    value = trainer.locality_loss(reference, logits, torch.tensor([[-100, -100, 5, -100]]))
    p, q = F.log_softmax(reference[0, 1], -1), F.log_softmax(logits[0, 1], -1)
    assert value.item() == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-5)


def test_distillation_starts_at_nothing(tmp_path):
    model = causal_model("llama")
    trainer = make_trainer(model, tmp_path, edit_dataset=None, base_loss="distillation")
    assert trainer.compute_loss(model.train(), batch()).item() == pytest.approx(0, abs=1e-6)


def test_an_encoder_decoder_is_refused(tmp_path, tiny_marian):
    with pytest.raises(TypeError, match="Expected a decoder-only language model .* got MarianMTModel"):
        make_trainer(tiny_marian, tmp_path, edit_layers=["last_decoder_layer"])


@pytest.mark.parametrize("size", [1, 2])
def test_edit_term_is_that_of_edits_for_so_many_requests_at_once(tmp_path, size):
    hard = [{**each, "labels": [30 + i, 2]} for i, each in enumerate(REQUESTS)]
    options = {"edits_per_step": 4 // size, "edits_at_once": size, "edit_max_steps": 1, "edit_learning_rate": 1e-4}
    model = causal_model("gpt2").double()
    trainer = make_trainer(model, tmp_path, edit_dataset=hard, locality_coef=0.0, edit_coef=1.0, **options)
    trainer.current_gradient_accumulation_steps = 1
    with torch.no_grad():
        base = trainer.compute_loss(model.eval(), batch()).item()
    order = torch.randperm(4, generator=torch.Generator().manual_seed(trainer.args.seed)).tolist()
    groups = [order[start : start + size] for start in range(0, 4, size)]
    losses = []
    for group in groups:
        constraints = [request_constraint(hard[row], model) for row in group]
        result = edit(model, JointConstraint(constraints, "mean"), rmsprop(1e-4), "last_decoder_mlp", 1)
        losses.append(max(0.0, float(result.loss)))
    assert max(losses) > 0
    total = trainer.compute_loss(model.train(), batch()).item()
    assert total == pytest.approx(base + sum(losses) / len(losses), rel=1e-6)
