"""Edits under autocast: they, and what they are compared on, are computed in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from gradient_recorder import GradientRecorder
from tiny_images import image_requests, image_rows, tiny_resnet

from editable_hf import ClassConstraint, edit, request_constraint, rmsprop

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def image_constraint():
    request = image_requests()[0]
    return ClassConstraint({"pixel_values": request["pixel_values"].float().unsqueeze(0)}, request["target"])


def assert_same_edit(actual, expected):
    assert expected.num_steps > 0 and actual.history == expected.history
    assert all(torch.equal(actual.params[name], value) for name, value in expected.params.items())


@HALF
def test_translation_edit_under_autocast_is_the_one_without(trained_marian, requests_data, dtype):
    model = trained_marian.float()
    constraint, layers = request_constraint(requests_data[0], model), "last_decoder_layer"
    expected = edit(model, constraint, rmsprop(1e-2), layers, max_steps=3)
    with torch.autocast("cpu", dtype=dtype):
        assert_same_edit(edit(model, constraint, rmsprop(1e-2), layers, max_steps=3), expected)


@HALF
def test_image_edit_under_autocast_is_the_one_without(dtype):
    model = tiny_resnet().float()
    expected = edit(model, image_constraint(), rmsprop(1e-3), "chain3", max_steps=3)
    with torch.autocast("cpu", dtype=dtype):
        assert_same_edit(edit(model, image_constraint(), rmsprop(1e-3), "chain3", max_steps=3), expected)


def test_model_that_accelerate_prepared_is_edited_without_its_autocast():
    model = tiny_resnet().float()
    expected = edit(model, image_constraint(), rmsprop(1e-3), "chain3", max_steps=3)
    AcceleratorState._reset_state()
    prepared = Accelerator(mixed_precision="bf16", cpu=True).prepare(model)
    AcceleratorState._reset_state()
    forward = vars(prepared)["forward"]
    assert_same_edit(edit(prepared, image_constraint(), rmsprop(1e-3), "chain3", max_steps=3), expected)
    assert vars(prepared)["forward"] is forward


def relative_error(actual, expected):
    whole, wanted = (torch.cat([gradient.flatten() for gradient in each.values()]) for each in (actual, expected))
    return ((whole - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("kind", ["translation", "images"])
def test_gradient_of_the_objective_is_as_near_to_that_of_float32_as_the_base_loss(
    kind, make_trainer, make_image_trainer, trained_marian, tmp_path
):
    errors = {}
    for edits in (False, True):
        gradients = []
        for half in (False, True):
            recorder = GradientRecorder()
            options = {"callbacks": [recorder], "max_steps": 1, "bf16": half, "folder": tmp_path / f"{half}{edits}"}
            if not edits:
                options["edit_dataset"] = None
            if kind == "images":
                rows = [{**row, "pixel_values": row["pixel_values"].float()} for row in image_rows(12)]
                trainer = make_image_trainer(
                    tiny_resnet().float(), train_dataset=rows, **{"edit_dataset": image_requests(), **options}
                )
            else:
                trainer = make_trainer(copy.deepcopy(trained_marian).float(), locality_coef=1.0, **options)
            trainer.train()
            gradients.append(recorder.steps[0])
        errors[edits] = relative_error(*gradients[::-1])
    print(f"{kind}: relative error under bfloat16: base loss alone {errors[False]:.1e}, Eq. 2 {errors[True]:.1e}")
    assert 0 < errors[True] < 1.5 * errors[False] < 0.3
