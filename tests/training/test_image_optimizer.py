"""Learning rates and weight decay of an image classifier's parts."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_images import image_requests, snapshot, tiny_extra, tiny_resnet

RATES = {
    "learning_rate": 1e-5,
    "extra_learning_rate": 1e-3,
    "hyperparameter_learning_rate": 0.25,
    "learn_edit_learning_rate": True,
}


@pytest.fixture
def trainer_of_extra(make_image_trainer):
    """Builds a trainer whose edits move the extra block."""
    return lambda model, **options: make_image_trainer(
        model, edit_dataset=image_requests(), edit_layers=["extra"], **options
    )


def test_learning_rates_and_weight_decay(trainer_of_extra):
    model = tiny_extra()
    trainer = trainer_of_extra(model, weight_decay=0.1, **RATES)
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) in names and names[id(parameter)] not in rates
            rates[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert set(rates) == set(names.values())
    block = "backbone.linear.extra"
    for name, (rate, decay) in rates.items():
        if name.startswith("editor."):
            assert (rate, decay) == (0.25, 0.0)
        else:
            assert rate == (1e-3 if name.startswith(block) else 1e-5), name
            assert decay == (0.0 if name.endswith("bias") else 0.1), name  # as the stock Trainer has it
    assert rates[f"{block}.dense.weight"] == (1e-3, 0.1) and rates[f"{block}.dense.bias"] == (1e-3, 0.0)


def test_weights_move_at_their_rates(trainer_of_extra):
    # Adam's first step is the learning rate, whatever the gradient.
    model = tiny_extra()
    before = snapshot(model)
    trainer = trainer_of_extra(model, max_steps=1, **RATES)
    trainer.train()
    assert trainer.state.log_history[0]["edit_num_steps"] > 1
    moved = {name: (p - before[name]).abs().max().item() for name, p in model.named_parameters() if name in before}
    for name, largest in moved.items():
        assert largest == pytest.approx(1e-3 if ".extra." in name else 1e-5, rel=1e-2), name
    assert abs(model.editor.beta.item()) == pytest.approx(0.25, rel=1e-2)
    assert abs(model.editor.learning_rate.item() - math.log(1e-4)) == pytest.approx(0.25, rel=1e-2)


def test_without_its_own_rate_the_block_has_the_common_one(trainer_of_extra):
    trainer = trainer_of_extra(tiny_extra())
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-3}


def test_ready_made_optimizer_gets_the_groups(trainer_of_extra):
    model = tiny_extra()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, weight_decay=0.2)
    trainer = trainer_of_extra(
        model, extra_learning_rate=1e-2, weight_decay=0.1, parts={"optimizers": (optimizer, None)}
    )
    assert trainer.create_optimizer() is optimizer
    sizes = [(len(group["params"]), group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    backbone = len(list(tiny_resnet().parameters()))
    assert sizes == [(backbone, 1e-4, 0.2), (1, 1e-3, 0.0), (2, 1e-2, 0.1), (2, 1e-2, 0.0)]


def test_ready_made_scheduler_is_refused(make_image_trainer):
    model = tiny_resnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ValueError, match=r"holds a learning-rate scheduler.*Pass `\(optimizer, None\)`"):
        make_image_trainer(model, parts={"optimizers": (optimizer, scheduler)})
