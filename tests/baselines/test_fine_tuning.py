from __future__ import annotations

import copy

import pytest
import torch
from tiny_images import image_rows, snapshot, tiny_resnet

from editable_hf import edited
from editable_hf.baselines import fine_tune


@pytest.fixture
def inputs():
    return {"pixel_values": image_rows(1)[0]["pixel_values"].unsqueeze(0), "labels": torch.tensor([2])}


def predicted(model, inputs):
    with torch.no_grad():
        return int(model.eval()(pixel_values=inputs["pixel_values"]).logits.argmax())


def never(model):
    return False


def test_equals_a_plain_training_loop(inputs):
    model, plain = tiny_resnet().train(), tiny_resnet()
    before = snapshot(model)
    result = fine_tune(model, inputs, never, layers="chain3", learning_rate=1e-2, max_steps=4)

    own = {name: param for name, param in plain.named_parameters() if name in result.params}
    optimizer, losses = torch.optim.Adam(own.values(), lr=1e-2), []
    for _ in range(4):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(plain(pixel_values=inputs["pixel_values"]).logits, inputs["labels"])
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(torch.allclose(result.params[name], param, rtol=0, atol=1e-12) for name, param in own.items())
    assert result.history[:4] == pytest.approx(losses, abs=1e-12) and result.num_steps == 4 and not result.success
    assert model.training and all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    assert all(param.grad is None for param in model.parameters())


def test_stops_where_the_correction_holds(inputs):
    model = tiny_resnet()
    assert predicted(model, inputs) != 2

    def holds(model):
        return predicted(model, inputs) == 2

    result = fine_tune(model, inputs, holds, learning_rate=1e-3)
    assert result.success and 0 < result.num_steps < 100 and len(result.history) == result.num_steps + 1
    with edited(model, result):
        assert predicted(model, inputs) == 2
        assert fine_tune(model, inputs, holds).num_steps == 0
    shorter = fine_tune(model, inputs, holds, learning_rate=1e-3, max_steps=result.num_steps - 1)
    assert not shorter.success


def test_frozen_parameters_stay_and_numbers_that_are_not_finite_end_it(inputs):
    model = tiny_resnet()
    model.get_submodule("linear").requires_grad_(False)
    assert not any(name.startswith("linear") for name in fine_tune(model, inputs, never, max_steps=1).params)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(broken.parameters()))[0] = torch.nan
    result = fine_tune(broken, inputs, never)
    assert not result.success and result.num_steps == 0 and "the loss is nan after step 0" in result.failure


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"labels": None}, {}, "must hold the wanted `labels`"),
        ({}, {"max_steps": -1}, "must be 0 or more, got -1"),
        ({}, {"layers": "linear"}, "None of the parameters of 'linear' requires grad"),
    ],
)
def test_wrong_arguments(inputs, changes, options, message):
    model = tiny_resnet()
    model.get_submodule("linear").requires_grad_(False)
    given = {name: value for name, value in (inputs | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        fine_tune(model, given, never, **options)
