"""NaN and infinity in training."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from gradient_recorder import GradientRecorder
from tiny_images import image_requests, image_rows, snapshot, tiny_resnet

from editable_hf.core.editing import EditResult
from editable_hf.training.term_log import TermLog


def broken(rows, index=0):
    """The rows, one of them with a pixel that is not finite."""
    pixels = rows[index]["pixel_values"].clone()
    pixels[0, 0, 0] = math.nan
    return [{**row, "pixel_values": pixels} if place == index else row for place, row in enumerate(rows)]


def test_edit_that_fails_ends_the_training_with_its_request(make_image_trainer):
    trainer = make_image_trainer(tiny_resnet(), edit_dataset=broken(image_requests(), 1), max_steps=4)
    with pytest.raises(FloatingPointError, match=r"request 1 failed in update \d: l_e is nan .*skip_non_finite=True"):
        trainer.train()


def test_the_own_id_of_a_request_is_named(make_trainer, trained_marian, requests_data):
    rows = requests_data.remove_columns("id").add_column("id", [70, 71, 72])
    trainer = make_trainer(trained_marian, edit_dataset=rows, edit_learning_rate=1e300, max_steps=1)
    with pytest.raises(
        FloatingPointError, match=r"The edit for request 7\d failed in update 1: l_e is nan after step 1"
    ):
        trainer.train()


def test_failed_edits_are_left_out_and_counted(make_image_trainer):
    """An update with a good and a broken request has the gradient of the good one alone."""
    gradients, logs = [], []
    good, bad = image_requests()[0], broken(image_requests())[0]
    for requests in ([good], [good, bad]):
        recorder = GradientRecorder()
        trainer = make_image_trainer(
            tiny_resnet(), edit_dataset=[good], skip_non_finite=True, callbacks=[recorder], max_steps=1
        )
        trainer._draw = lambda requests=requests: requests
        trainer.train()
        gradients.append(recorder.steps[0])
        logs.append(trainer.state.log_history[0])
    assert all(torch.equal(gradients[1][name], value) for name, value in gradients[0].items())
    assert logs[1].pop("edits_skipped") == 0.5
    assert logs[1] == logs[0]


def test_update_without_any_edit_left_is_one_of_the_base_loss(make_image_trainer):
    runs = []
    for requests in (None, broken(image_requests()[:1])):
        model = tiny_resnet()
        trainer = make_image_trainer(model, edit_dataset=requests, skip_non_finite=True)
        trainer.train()
        runs.append((snapshot(model), trainer.state.log_history[0]))
    (plain, plain_log), (skipped, log) = runs
    assert all(torch.equal(skipped[name], value) for name, value in plain.items() if not name.startswith("editor."))
    assert log["edits_skipped"] == 1.0 and log["loss"] == plain_log["loss"] == log["base_loss"]
    assert "edit_loss" not in log and "locality_loss" not in log  # there is nothing to average


def test_gradient_that_is_not_finite_ends_the_training_before_the_weights_are_lost(make_image_trainer):
    model = tiny_resnet()
    rows = broken(image_rows(12))
    options = {"max_steps": 4, "freeze_batch_norm": True}
    trainer = make_image_trainer(model, train_dataset=rows, edit_dataset=image_requests(), **options)
    weights = {}
    trainer.training_step = lambda *args, step=trainer.training_step, **kwargs: (
        weights.update({name: p.detach().clone() for name, p in model.named_parameters()}),
        step(*args, **kwargs),
    )[1]
    with pytest.raises(
        FloatingPointError,
        match=r"gradient is not finite in update \d, whose edits .* requests \[\d\]; base_loss is nan.*No weight",
    ):
        trainer.train()
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


def test_such_updates_are_left_out_and_counted(make_image_trainer):
    model = tiny_resnet()
    rows = broken(image_rows(12))  # two batches, one of which is lost, in each epoch
    options = {"max_steps": 4, "skip_non_finite": True}
    trainer = make_image_trainer(model, train_dataset=rows, edit_dataset=image_requests(), **options)
    trainer.train()
    assert all(value.isfinite().all() for value in snapshot(model).values())
    assert trainer.state.log_history[3]["updates_skipped"] == 2 and trainer.state.global_step == 4


def test_means_of_edits_do_without_micro_batches_that_have_none():
    log, value = TermLog(), torch.tensor
    result = EditResult({}, True, 3, value(0.0), [1.0, 0.5, 0.2, 0.0])
    log.add(value(1.0), value(2.0), value(4.0), [result])
    log.add(value(3.0), value(0.0), value(0.0), [], num_skipped=2)
    log.add(value(2.0), value(0.0), value(8.0), [result._replace(success=False, num_steps=1)], num_skipped=1)
    assert log.means(Accelerator(cpu=True)) == pytest.approx(
        {
            "base_loss": 2.0,
            "edit_loss": 1.0,
            "locality_loss": 6.0,
            "edit_success_rate": 0.5,
            "edit_num_steps": 2.0,
            "edits_skipped": 0.5,
        }
    )
    assert log.count == 0


def test_terms_that_are_not_finite_are_named_and_in_no_mean():
    log, value = TermLog(), torch.tensor
    result = EditResult({}, True, 2, value(0.0), [1.0, 0.5, 0.0])
    log.add(value(math.nan), value(3.0), value(math.inf), [result])
    assert log.not_finite == ["base_loss is nan", "locality_loss is inf"]
    assert log.means(Accelerator(cpu=True)) == {"edit_loss": 3.0, "edit_success_rate": 1.0, "edit_num_steps": 2.0}
    log.add(value(2.0), value(0.0), value(0.0), [result])
    assert log.means(Accelerator(cpu=True))["base_loss"] == 2.0


def test_learnable_values_still_get_a_gradient_where_an_edit_is_left_out(make_image_trainer):
    recorder = GradientRecorder()
    trainer = make_image_trainer(
        tiny_resnet(),
        edit_dataset=broken(image_requests()[:1]),
        callbacks=[recorder],
        learn_edit_learning_rate=True,
        skip_non_finite=True,
        max_steps=1,
    )
    trainer.train()
    values = [value for name, value in recorder.steps[0].items() if name.startswith("editor.")]
    assert len(values) == 2 and all(value == 0 for value in values)  # DDP would wait for None
