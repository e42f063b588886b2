"""Editable+CNP is trained by Eq. 2 with the same trainer as everything else."""

from __future__ import annotations

import pytest
import torch
from tiny_images import NUM_CLASSES, SIZE, image_requests, image_rows, tiny_resnet
from transformers import AutoModelForImageClassification

from editable_hf import ClassConstraint, EditableImageTrainer, EditableImageTrainingArguments, EditorConfig, edit
from editable_hf.baselines import CNPForImageClassification
from editable_hf.data.image_requests import ImageEditRequests


def cnp(trained=False):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CNPForImageClassification.from_backbone(tiny_resnet(), "chain2", image_size=SIZE)
        if trained:
            torch.nn.init.normal_(model.editor.scale)
    return model


@pytest.fixture
def make_trainer(tmp_path):
    def make(model, requests, folder="run", **options):
        usual = {
            "edit_layers": ["condition"],
            "per_device_train_batch_size": 4,
            "edit_coef": 0.7,
            "locality_coef": 0.5,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        args = EditableImageTrainingArguments(str(tmp_path / folder), **{**usual, **options})
        return EditableImageTrainer(model, args, train_dataset=image_rows(12), edit_dataset=requests)

    return make


@pytest.mark.parametrize("base_loss", ["task", "distillation"])
def test_gradient_of_the_objective_is_that_of_finite_differences(make_trainer, base_loss):
    model, requests = cnp(trained=True), image_requests(3)
    trainer = make_trainer(model, requests, edits_per_step=3, base_loss=base_loss)
    trainer.current_gradient_accumulation_steps = 1
    rows = image_rows(6, seed=9)
    batch = {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
    for module in model.modules():  # edits run with statistics that the base forward moves; no gradient goes that way
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0

    # Eq. 4 takes no gradient through its reference, so the difference quotient must not move it either.
    locality_loss, references = trainer.locality_loss, []

    def against_the_first(reference, edited, labels):
        references.append(reference)
        return locality_loss(references[0], edited, labels)

    trainer.locality_loss = against_the_first

    def objective():
        return trainer.compute_loss(model.train(), batch)

    objective()
    assert trainer._terms.count and trainer._terms.means(trainer.accelerator)["edit_num_steps"] > 0
    moving = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert set(dict(model.named_parameters())) - set(moving) == {"backbone.layer2.condition"}
    generator = torch.Generator().manual_seed(1)
    for part in ("editor.", "backbone.conv1", "backbone.layer2", "backbone.layer3"):
        model.zero_grad()
        objective().backward()
        own = {name: value for name, value in moving.items() if name.startswith(part)}
        direction = {name: torch.randn(value.shape, generator=generator).double() for name, value in own.items()}
        expected = sum((own[name].grad * direction[name]).sum() for name in own)
        values = []
        for step in (1e-6, -2e-6):
            with torch.no_grad():
                for name, value in own.items():
                    value += step * direction[name]
            values.append(objective().item())
        with torch.no_grad():
            for name, value in own.items():
                value += 1e-6 * direction[name]
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected.item(), rel=1e-5, abs=1e-8), part


def success_rate(model, rows):
    requests = [(row["pixel_values"].unsqueeze(0), target) for row in rows for target in range(NUM_CLASSES)]
    constraints = [ClassConstraint({"pixel_values": image}, target) for image, target in requests]
    results = [edit(model, each, model.editor.build(), "condition") for each in constraints]
    return sum(result.success for result in results) / len(results)


def test_encoder_learns_to_edit(make_trainer):
    model, rows = cnp(), image_rows(8, seed=4)
    before = success_rate(model, rows)
    requests = ImageEditRequests(image_rows(12), num_classes=NUM_CLASSES, seed=0)
    options = {"max_steps": 100, "edits_per_step": 4, "hyperparameter_learning_rate": 3e-2, "learning_rate": 1e-3}
    trainer = make_trainer(model, requests, edit_coef=1.0, locality_coef=0.01, **options)
    trainer.train()
    logs = [entry["edit_loss"] for entry in trainer.state.log_history if "edit_loss" in entry]
    assert sum(logs[-10:]) < 0.5 * sum(logs[:10])
    assert success_rate(model, rows) > before + 0.2
    assert not model.get_parameter("backbone.layer2.condition").any()


def test_resumed_run_is_the_uninterrupted_one(make_trainer, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    requests = ImageEditRequests(image_rows(12), num_classes=NUM_CLASSES, seed=0)
    whole, resumed = cnp(trained=True), cnp(trained=True)
    trainer = make_trainer(whole, requests, "whole", **options)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    make_trainer(resumed, requests, "resumed", **options).train(
        resume_from_checkpoint=str(tmp_path / "whole/checkpoint-2")
    )
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not torch.equal(whole.editor.scale, cnp(trained=True).editor.scale), "the encoder is trained"

    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "final", dtype=torch.float64)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in whole.state_dict().items())
    config = EditorConfig.from_pretrained(tmp_path / "final")
    assert (config.editor, config.layers, config.hyperparameters, config.learned) == ("cnp", ["condition"], {}, {})
    assert config.max_steps == 1, "whatever `edit_max_steps` allows"
    with pytest.raises(ValueError, match=r"'cnp' is no gradient editor .* take `model.editor.build\(\)`"):
        config.build_editor()


def test_loaded_model_is_trained_like_the_one_that_was_saved(make_trainer, tmp_path):
    saved = cnp(trained=True)
    saved.save_pretrained(tmp_path / "model")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "model", dtype=torch.float64)
    for model in (saved, loaded):
        make_trainer(model, image_requests(3), max_steps=3, learning_rate=1e-2).train()
        assert not model.get_parameter("backbone.layer2.condition").any()
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in saved.state_dict().items())


def test_encoder_has_a_gradient_where_no_edit_takes_a_step(make_trainer):
    model, rows = cnp(trained=True), image_rows(4)
    pixels = torch.stack([row["pixel_values"] for row in rows])
    classes = model.eval()(pixels).logits.argmax(-1).tolist()
    requests = [{"pixel_values": pixel, "target": target} for pixel, target in zip(pixels, classes, strict=True)]
    trainer = make_trainer(model, requests, edits_per_step=2, freeze_batch_norm=True)
    trainer.current_gradient_accumulation_steps = 1
    trainer.compute_loss(model.train(), {"pixel_values": pixels, "labels": torch.tensor(classes)}).backward()
    assert trainer._terms.means(trainer.accelerator)["edit_num_steps"] == 0
    # Zeros, not None: DDP waits for all of them.
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    assert not any(value.grad.any() for value in model.editor.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edit_layers": ["chain2"]}, r"expected `edit_layers` \['condition'\], got \['chain2'\]"),
        ({"edit_learning_rate": 3e-4, "editor": "gd"}, "leave unset: editor, edit_learning_rate"),
        ({"learn_edit_learning_rate": True}, "leave unset: learn_edit_learning_rate"),
        ({"edits_at_once": 2}, "one request at a time"),
    ],
)
def test_arguments_of_other_editors_are_refused(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(cnp(), image_requests(), **options)
