"""NaN and infinity in training."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from tiny_images import image_requests, image_rows, tiny_resnet

from editable_hf.core.editing import EditResult
from editable_hf.training.term_log import TermLog


def broken(rows, index=0):
    """The rows, one of them with a pixel that is not finite."""
    pixels = rows[index]["pixel_values"].clone()
    pixels[0, 0, 0] = math.nan
    return [{**row, "pixel_values": pixels} if place == index else row for place, row in enumerate(rows)]


def test_edit_that_fails_ends_the_training_with_its_request(make_image_trainer):
    trainer = make_image_trainer(tiny_resnet(), edit_dataset=broken(image_requests(), 1), max_steps=4)
    with pytest.raises(FloatingPointError, match=r"request 1 failed in update \d: l_e is nan .*edit_learning_rate"):
        trainer.train()


def test_the_own_id_of_a_request_is_named(make_trainer, trained_marian, requests_data):
    rows = requests_data.remove_columns("id").add_column("id", [70, 71, 72])
    trainer = make_trainer(trained_marian, edit_dataset=rows, edit_learning_rate=1e300, max_steps=1)
    with pytest.raises(
        FloatingPointError, match=r"The edit for request 7\d failed in update 1: l_e is nan after step 1"
    ):
        trainer.train()


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


def test_terms_that_are_not_finite_are_named_and_in_no_mean():
    log, value = TermLog(), torch.tensor
    result = EditResult({}, True, 2, value(0.0), [1.0, 0.5, 0.0])
    log.add(value(math.nan), value(3.0), value(math.inf), [result])
    assert log.not_finite == ["base_loss is nan", "locality_loss is inf"]
    assert log.means(Accelerator(cpu=True)) == {"edit_loss": 3.0, "edit_success_rate": 1.0, "edit_num_steps": 2.0}
    log.add(value(2.0), value(0.0), value(0.0), [result])
    assert log.means(Accelerator(cpu=True))["base_loss"] == 2.0
