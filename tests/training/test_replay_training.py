"""A training run is the same with and without replays."""

import copy
from dataclasses import fields

import pytest
import torch
from gradient_recorder import GradientRecorder
from torch import nn
from transformers import TrainingArguments, logging

from editable_hf.training import locality

PLAIN = {"replay": False, "reuse_base_forward": False}
NUM_STEPS = 20


@pytest.fixture
def run(make_trainer, encoded_pairs):
    """Trains a copy of the model; losses and gradients of every step."""

    def train(model, **options):
        recorder = GradientRecorder()
        defaults = {
            "max_steps": NUM_STEPS,
            "per_device_train_batch_size": 3,
            "learning_rate": 1e-4,
            "edit_learning_rate": 1e-3,
            "learn_edit_learning_rate": True,
            "save_strategy": "no",
            "lr_scheduler_type": "constant",
            "optim": "sgd",  # Adam's first steps are signs, and a gradient of rounding has one too
        }
        trainer = make_trainer(
            copy.deepcopy(model),
            train_dataset=encoded_pairs.select(range(12)),
            callbacks=[recorder],
            **{**defaults, **options},
        )
        trainer.model.editor.to(next(model.parameters()).dtype)
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        assert len(logs) == len(recorder.steps) == options.get("max_steps", NUM_STEPS)
        return logs, recorder.steps

    return train


TERMS = ("loss", "base_loss", "edit_loss", "locality_loss", "edit_num_steps", "editor/beta")


def assert_same_run(ours, expected, tolerance, gradient_tolerance=None):
    for step, (log, wanted) in enumerate(zip(ours[0], expected[0], strict=True)):
        for key in TERMS:
            assert log[key] == pytest.approx(wanted[key], rel=tolerance, abs=tolerance), (step, key)
    for step, (grads, wanted) in enumerate(zip(ours[1], expected[1], strict=True)):
        assert grads.keys() == wanted.keys()
        scale = torch.stack([grad.norm() for grad in wanted.values()]).norm()
        for name, grad in wanted.items():
            error = ((grads[name] - grad).norm() / scale).item()
            assert error <= (gradient_tolerance or tolerance), (step, name, error)
    logs = expected[0]
    assert sum(log["edit_num_steps"] > 0 for log in logs) > len(logs) / 2
    assert sum(log["locality_loss"] > 0 for log in logs) > len(logs) / 2


def test_run_is_that_without_replay(run, trained_marian):
    expected = run(trained_marian, **PLAIN)
    assert_same_run(run(trained_marian, reuse_base_forward=False), expected, 1e-10)
    # Without dropout, reused activations are those of eval mode.
    assert_same_run(run(trained_marian), expected, 1e-10)


def test_run_in_single_precision_is_that_without_replay(run, trained_marian):
    model = trained_marian.float()
    # Updates build on each other, so that rounding (eps is 1e-7) grows from 1e-7 to some 1e-5 in twenty of them on one
    # processor and further on others; the test above says in double precision that nothing else differs.
    ours, expected = run(model), run(model, **PLAIN)
    assert_same_run(ours, expected, 1e-4, gradient_tolerance=1e-3)
    assert_same_run(*([part[:2] for part in each] for each in (ours, expected)), 1e-5)


@pytest.mark.parametrize("layers", [["encoder.layers.0"], ["decoder.layers.0.fc2", "decoder.layers.1"], ["*"]])
def test_other_layers(run, trained_marian, layers):
    options = {"edit_layers": layers, "max_steps": 2, "edits_per_step": 2}
    expected = run(trained_marian, **options, **PLAIN)
    assert_same_run(run(trained_marian, **options), expected, 1e-9)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(run, trained_marian, use_reentrant):
    trained_marian.enable_input_require_grads()
    expected = run(trained_marian, max_steps=3, **PLAIN)
    # transformers renamed the arguments between 5.21 and 5.24.
    names = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"
    options = {name: True, f"{name}_kwargs": {"use_reentrant": use_reentrant}}
    assert_same_run(run(trained_marian, max_steps=3, **options), expected, 1e-9)


class DropEveryOther:
    """`torch.rand` for layerdrop: layers are dropped in turn, so that every case comes up in a few steps."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return torch.tensor(0.0 if self.calls % 3 == 0 else 1.0)


def test_dropped_layers_make_a_second_forward(run, trained_marian, caplog, monkeypatch):
    """The locality term then compares in eval mode, with every layer, as without replay."""
    decoder = trained_marian.model.decoder
    assert decoder.layerdrop == 0
    decoder.layerdrop = trained_marian.config.decoder_layerdrop = 0.5
    logging.warning_once.cache_clear()
    runs = []
    for options in (PLAIN, {"reuse_base_forward": False}, {}):
        monkeypatch.setattr("transformers.models.marian.modeling_marian.torch.rand", DropEveryOther())
        runs.append(run(trained_marian, max_steps=5, **options))
        warned = [message for message in caplog.messages if "The locality term needs a second forward" in message]
        assert len(warned) == (options == {})  # once, not at every step
    assert_same_run(runs[1], runs[0], 1e-10)
    assert_same_run(runs[2], runs[0], 1e-10)


def test_model_is_recorded_within_the_wrapped_forward(run, trained_marian, monkeypatch):
    """Mixed precision patches `forward` on the instance; the run is the same with and without replay."""
    counted = []
    original = locality.Recording.replay

    def counting(self, params):
        counted.append(len(self.cached))
        return original(self, params)

    monkeypatch.setattr(locality.Recording, "replay", counting)
    model = trained_marian.float()
    expected = run(model, max_steps=3, bf16=True, **PLAIN)
    assert not counted
    ours = run(model, max_steps=3, bf16=True)
    assert counted and all(counted)
    for log, wanted in zip(ours[0], expected[0], strict=True):
        assert log["loss"] == pytest.approx(wanted["loss"], rel=0.02)
        assert log["locality_loss"] == pytest.approx(wanted["locality_loss"], rel=0.1, abs=0.02)


def test_model_keeps_its_modules_as_they_were(run, trained_marian):
    assert isinstance(trained_marian, nn.Module)
    run(trained_marian, max_steps=1)
    assert not [module for module in trained_marian.modules() if "forward" in vars(module)]
    assert not trained_marian._forward_pre_hooks
