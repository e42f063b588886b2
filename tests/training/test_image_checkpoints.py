from __future__ import annotations

import pytest
import torch
from rounding import assert_same_up_to_rounding
from safetensors import safe_open
from tiny_images import Augmented, image_requests, image_rows, snapshot, tiny_extra, tiny_resnet
from transformers import AutoModelForImageClassification

from editable_hf import EditorConfig, select_parameters
from editable_hf.data.image_requests import ImageEditRequests, RankDistribution


def by_rank():
    ranks = RankDistribution(torch.tensor([0, 2, 1, 0, 1]))
    return ImageEditRequests(Augmented(image_rows(7, seed=3)), ranks=ranks, seed=1)


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(("build", "layers"), [(tiny_resnet, "chain3"), (tiny_extra, "extra")])
def test_saved_model_is_an_ordinary_one(make_image_trainer, transformers_log, tmp_path, build, layers):
    model = build()
    names = set(model.state_dict())
    trainer = make_image_trainer(
        model, edit_dataset=image_requests(), edit_layers=[layers], save_strategy="steps", save_steps=2
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    images = torch.stack([row["pixel_values"] for row in image_rows(4)])
    for folder in (tmp_path / "run/checkpoint-2", tmp_path / "final"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert set(file.keys()) == names
        with transformers_log() as messages:
            loaded, info = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
        assert messages == [] and not any(info.values())
        assert type(loaded) is type(model) and "editor" not in dict(loaded.named_children())
        assert_same_up_to_rounding(loaded.double()(images).logits, model.eval()(images).logits)
        config = EditorConfig.from_pretrained(folder)
        assert config.layers == [layers] and config.hyperparameters == model.editor.values()
        assert set(select_parameters(loaded, config.layers)) == set(trainer.edit_parameters)


@pytest.mark.parametrize(
    ("build", "layers", "requests"),
    [
        (tiny_resnet, "chain3", by_rank),
        (tiny_extra, "extra", lambda: ImageEditRequests(Augmented(image_rows(3)), num_classes=5)),
    ],
    ids=["ranks", "extra"],
)
@pytest.mark.parametrize("accumulation", [1, 2], ids=["mid-epoch", "epoch-end"])
@pytest.mark.parametrize("base_loss", ["task", "distillation"])
def test_resumed_run_is_the_uninterrupted_one(
    make_image_trainer, tmp_path, build, layers, requests, accumulation, base_loss
):
    options = {
        "max_steps": 5,
        "save_strategy": "steps",
        "save_steps": 2,
        "learn_edit_learning_rate": True,
        "hyperparameter_learning_rate": 0.05,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": accumulation,
        "edit_layers": [layers],
        "extra_learning_rate": 1e-2 if layers == "extra" else None,
        "base_loss": base_loss,
        "lr_scheduler_type": "linear",
    }
    runs = []
    for name, resume in (("whole", None), ("rest", tmp_path / "whole/checkpoint-2")):
        model = build().float()
        rows = [{**row, "pixel_values": row["pixel_values"].float()} for row in image_rows(12)]
        trainer = make_image_trainer(
            model,
            folder=tmp_path / name,
            # In the middle of an epoch no Trainer resumes random crops: it loads a batch ahead of the checkpoint.
            train_dataset=Augmented(rows) if accumulation == 2 else rows,
            edit_dataset=requests(),
            **options,
        )
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        runs.append((trainer, snapshot(model)))
    (whole, weights), (rest, resumed) = runs
    assert len({log["edit_loss"] for log in logs_of(whole)}) > 1 and logs_of(rest) == logs_of(whole)
    assert set(weights) == set(resumed) and all(torch.equal(resumed[name], weights[name]) for name in weights)
    mine, theirs = rest.optimizer.state_dict(), whole.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"] and mine["state"].keys() == theirs["state"].keys()
    for index, state in mine["state"].items():
        assert all(torch.equal(value, theirs["state"][index][key]) for key, value in state.items())
