from __future__ import annotations

import pytest
import torch
from gradient_recorder import GradientRecorder
from tiny_images import (
    Augmented,
    changed_names,
    image_requests,
    image_rows,
    snapshot,
    tiny_extra,
    tiny_resnet,
    tiny_vit,
)
from torch.nn import functional as F
from transformers import Trainer

from editable_hf.core import FunctionalModel
from editable_hf.data.image_requests import ImageEditRequests, RankDistribution

pytestmark = pytest.mark.compat


def by_rank():
    ranks = RankDistribution(torch.tensor([0, 2, 1, 0, 1]))
    return ImageEditRequests(Augmented(image_rows(7, seed=3)), ranks=ranks, seed=1)


def logs_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


# BatchNorm


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("build", "layers"), [(tiny_resnet, "chain3"), (tiny_resnet, "all"), (tiny_extra, "extra")])
def test_running_statistics_are_those_of_a_plain_step(
    make_image_trainer, plain_arguments, build, layers, accumulation
):
    options = {"max_steps": 1, "gradient_accumulation_steps": accumulation}
    ours, plain = build(), build()
    rows = image_rows(12)
    trainer = make_image_trainer(
        ours, train_dataset=rows, edit_dataset=image_requests(), edit_layers=[layers], **options
    )
    trainer.train()
    assert logs_of(trainer)[0]["edit_num_steps"] > 0 and logs_of(trainer)[0]["locality_loss"] > 0
    args = plain_arguments(**options)
    Trainer(plain, args, train_dataset=image_rows(12)).train()
    buffers, expected = dict(ours.named_buffers()), dict(plain.named_buffers())
    assert set(buffers) == set(expected) and len(buffers) > 10
    assert all(torch.equal(buffers[name], value) for name, value in expected.items())
    start = dict(build().named_buffers())
    assert not any(torch.equal(buffers[name], value) for name, value in start.items())


# The base loss


@pytest.mark.parametrize("editable", [True, False])
def test_accumulated_gradient_is_the_big_batchs(make_image_trainer, editable):
    image = image_rows(1, seed=4)[0]["pixel_values"]
    target = int(tiny_vit().eval()(image.unsqueeze(0)).logits.argmin())
    gradients, losses = [], []
    for micro, steps in ((8, 1), (2, 4)):
        recorder = GradientRecorder()
        trainer = make_image_trainer(
            tiny_vit(),
            train_dataset=image_rows(8),
            edit_dataset=[{"pixel_values": image, "target": target}] if editable else None,
            callbacks=[recorder],
            max_steps=1,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=steps,
            label_smoothing_factor=0.1,
            edit_layers=["vit.layers.1"],
            edit_learning_rate=1e-3,
            learn_edit_learning_rate=True,
        )
        trainer.train()
        gradients.append(recorder.steps[0])
        losses.append(trainer.state.log_history[0])
    big, small = gradients
    assert set(big) == set(small) and ("editor.beta" in big) == editable
    if editable:
        assert losses[0]["edit_num_steps"] == losses[1]["edit_num_steps"] > 1
        assert losses[0]["edit_loss"] > 0 and losses[0]["locality_loss"] > 0 and big["editor.learning_rate"] != 0
        for key in ("base_loss", "edit_loss", "locality_loss"):
            assert losses[1][key] == pytest.approx(losses[0][key], rel=1e-9)
    error = max((small[name] - grad).abs().max().item() for name, grad in big.items())
    print(f"largest error of a gradient: {error:.1e}")
    assert error < 1e-7  # ViT's attention weights are float32
    assert losses[1]["loss"] == pytest.approx(losses[0]["loss"], rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_base_loss_is_the_stock_trainers(make_image_trainer, plain_arguments, smoothing):
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "max_steps": 3}
    options |= {"label_smoothing_factor": smoothing, "weight_decay": 0.1}
    ours, plain = tiny_resnet(), tiny_resnet()
    trainer = make_image_trainer(ours, **options)
    trainer.train()
    args = plain_arguments(**options)
    stock = Trainer(plain, args, train_dataset=image_rows(12))
    stock.train()
    assert [log["loss"] for log in logs_of(trainer)] == pytest.approx(
        [log["loss"] for log in logs_of(stock)], rel=1e-6
    )
    own = snapshot(ours)
    for name, value in snapshot(plain).items():
        torch.testing.assert_close(own[name], value, rtol=1e-4, atol=1e-6)


def test_own_loss_function_gets_the_number_of_images(make_image_trainer):
    seen = []

    def loss_fn(outputs, labels, num_items_in_batch=None):
        seen.append(int(num_items_in_batch))
        return F.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    logs = []
    for parts in ({}, {"compute_loss_func": loss_fn}):
        trainer = make_image_trainer(
            tiny_resnet(), max_steps=1, per_device_train_batch_size=3, gradient_accumulation_steps=2, parts=parts
        )
        trainer.train()
        logs.append(logs_of(trainer)[0])
    assert seen == [6, 6]
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-6)


@pytest.mark.parametrize(("build", "layers"), [(tiny_resnet, "chain3"), (tiny_extra, "extra")])
def test_distillation_baseline_is_both_coefficients_zero(make_image_trainer, build, layers):
    runs = []
    for options in (
        {"edit_dataset": None},
        {"edit_dataset": image_requests(), "edit_coef": 0.0, "locality_coef": 0.0},
    ):
        model, recorder = build(), GradientRecorder()
        trainer = make_image_trainer(
            model,
            max_steps=3,
            base_loss="distillation",
            edit_layers=[layers],
            weight_decay=0.1,
            max_grad_norm=0.0,  # the norm is a sum, to which the editor's zeros belong
            callbacks=[recorder],
            **options,
        )
        trainer.train()
        runs.append((logs_of(trainer), recorder.steps, snapshot(model)))
    (plain, plain_steps, weights), (edited, edited_steps, edited_weights) = runs
    assert sum(log["edit_num_steps"] > 0 for log in edited) > 1
    assert [log["loss"] for log in plain] == [log["loss"] for log in edited]
    for without, with_edits in zip(plain_steps, edited_steps, strict=True):
        assert all(torch.equal(with_edits[name], grad) for name, grad in without.items())
    weights = {name: value for name, value in weights.items() if not name.startswith("editor.")}
    assert all(torch.equal(edited_weights[name], value) for name, value in weights.items())


def test_teacher_is_the_starting_model(make_image_trainer):
    model = tiny_resnet().train()
    start = snapshot(model)
    trainer = make_image_trainer(model, base_loss="distillation", max_steps=3, edit_dataset=image_requests())
    trainer.train()
    assert changed_names(trainer.teacher, start) == [] and not trainer.teacher.training
    assert not any(parameter.requires_grad for parameter in trainer.teacher.parameters())
    images = torch.stack([row["pixel_values"] for row in image_rows(5, seed=8)])
    logits, teacher_logits = model.eval()(images).logits, trainer.teacher(images).logits
    assert not torch.allclose(logits, teacher_logits)
    model.train()
    expected = F.kl_div(
        logits.log_softmax(-1), teacher_logits.log_softmax(-1), log_target=True, reduction="batchmean"
    ).item()
    assert trainer._base_loss(logits, torch.zeros(5), {"pixel_values": images}, None).item() == pytest.approx(expected)


# Requests


def test_class_at_a_rank_is_that_of_the_moment(make_image_trainer):
    model = tiny_resnet()
    trainer = make_image_trainer(model, edit_dataset=by_rank(), max_steps=3, learning_rate=0.05, edits_per_step=2)
    built, seen = trainer.request_constraint, []

    def checked(request):
        constraint = built(request)
        training = model.training
        logits = model.eval()(request["pixel_values"].unsqueeze(0)).logits[0].tolist()
        value = constraint(FunctionalModel(model, ["linear.weight"]), {}).item()
        model.train(training)
        assert sum(logit > logits[constraint.target] for logit in logits) == request["rank"]
        assert request["rank"] > 0 and value > 0
        seen.append((request["rank"], constraint.target))
        return constraint

    trainer.request_constraint = checked
    trainer.train()
    assert len(seen) == 6 and len({rank for rank, _ in seen}) > 1 and len({target for _, target in seen}) > 1


def test_reading_a_rank_changes_nothing(make_image_trainer):
    model = tiny_resnet()
    trainer = make_image_trainer(model, edit_dataset=by_rank())
    model.train()
    model.layer1.eval()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    trainer.request_constraint({"pixel_values": image_rows(1)[0]["pixel_values"], "rank": 2})
    assert changed_names(model, before) == [] and [module.training for module in model.modules()] == modes


def test_endless_requests_go_on(make_image_trainer):
    requests = ImageEditRequests(Augmented(image_rows(3)), num_classes=5, seed=2)
    trainer = make_image_trainer(tiny_resnet(), edit_dataset=requests, max_steps=4, edits_per_step=2)
    rows, get = [], type(requests).__getitem__
    trainer.edit_dataset = type("Spy", (), {"__getitem__": lambda self, row: rows.append(row) or get(requests, row)})()
    trainer.train()
    assert sorted(rows[:3]) == [0, 1, 2] and sorted(rows[3:6]) == [3, 4, 5] and set(rows[6:]) < {6, 7, 8}
    listed = ImageEditRequests(Augmented(image_rows(3)), requests=_listed(), seed=2)
    assert max(make_image_trainer(tiny_resnet(), edit_dataset=listed)._order.rows(5)) < 2


def _listed():
    from datasets import Dataset

    return Dataset.from_list([{"id": i, "image_index": i, "label": 0, "target": 3} for i in range(2)])


# Evaluation


@pytest.mark.parametrize("own", [True, False])
def test_evaluate_gives_the_error_rate(make_image_trainer, own):
    rows, model = image_rows(11, seed=6), tiny_resnet()
    parts = {"eval_dataset": rows}
    if own:
        parts["compute_metrics"] = lambda prediction: {"shape": prediction.predictions.shape[1]}
    trainer = make_image_trainer(model, edit_dataset=image_requests(), per_device_eval_batch_size=4, parts=parts)
    trainer.request_constraint = None  # any edit would fail
    before = snapshot(model)
    metrics = trainer.evaluate()
    assert changed_names(model, before) == []
    logits = torch.cat([model.eval()(row["pixel_values"].unsqueeze(0)).logits for row in rows])
    labels = torch.tensor([row["labels"] for row in rows])
    wrong = sum(int(row.argmax()) != label for row, label in zip(logits, labels.tolist(), strict=True))
    assert 0 < wrong < len(rows)
    assert metrics["eval_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert metrics.get("eval_shape" if own else "eval_error_rate") == (5 if own else wrong / len(rows))


def test_training_lowers_the_error_rate(make_image_trainer):
    rows = image_rows(60, noise=0.3)
    parts = {"eval_dataset": image_rows(30, seed=1, noise=0.3)}
    trainer = make_image_trainer(
        tiny_resnet(),
        train_dataset=rows,
        edit_dataset=ImageEditRequests(Augmented(image_rows(7)), num_classes=5),
        max_steps=25,
        per_device_train_batch_size=20,
        parts=parts,
    )
    before = trainer.evaluate()["eval_error_rate"]
    trainer.train()
    after = trainer.evaluate()["eval_error_rate"]
    assert before > 0.5 and after < 0.2


# Attention


def test_vision_transformer_is_trained_with_the_attention_that_it_comes_with(make_image_trainer, tmp_path):
    image, gradients = image_rows(1, seed=4)[0]["pixel_values"], []
    requests = [{"pixel_values": image, "target": int(tiny_vit().eval()(image.unsqueeze(0)).logits.argmin())}]
    for attention in ("eager", "sdpa"):
        model, recorder = tiny_vit(), GradientRecorder()
        model.set_attn_implementation(attention)
        options = {"edit_layers": ["*.1.*"], "max_steps": 1, "folder": tmp_path / attention}
        trainer = make_image_trainer(model, edit_dataset=requests, callbacks=[recorder], **options)
        trainer.train()
        assert logs_of(trainer)[0]["edit_num_steps"] > 0
        gradients.append(recorder.steps[0])
    # ViT's eager attention rounds its softmax to single precision.
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)
