"""What changed since a recording is noticed, and the model is left as it was."""

import pytest
import torch
from replay_checks import Chain, answered_names, assert_exact, make, perturbed, recorded
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from editable_hf.core.functional import FunctionalModel
from editable_hf.core.replay import ReplayError, record


@pytest.fixture
def x():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def change_input(model, x):
    x.add_(1)


def change_weight(model, x):
    with torch.no_grad():
        model.first.weight.mul_(2)


def replace_weight(model, x):
    model.first.weight = nn.Parameter(model.first.weight.detach() * 2)


def load_weights(model, x):
    model.load_state_dict({name: value * 2 for name, value in model.state_dict().items()}, assign=True)


def change_buffer(model, x):
    model.extra[0].running_mean.add_(1)


def switch_mode(model, x):
    model.train()


def switch_mode_of_an_inner_module(model, x):
    model.extra[1].train()


class WithState(Chain):
    def build(self):
        return nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))


@pytest.mark.parametrize(
    "change",
    [
        change_input,
        change_weight,
        replace_weight,
        load_weights,
        change_buffer,
        switch_mode,
        switch_mode_of_an_inner_module,
    ],
)
def test_change_after_the_recording_is_refused(change, x):
    model = make(WithState)
    recording = recorded(model, ["last.weight"], (x,))
    params = perturbed(model, ["last.weight"])
    recording.replay(params)
    change(model, x)
    with pytest.raises(ReplayError, match="since the forward was recorded"):
        recording.replay(params)


def test_change_of_an_answer_is_refused(x):
    kept = []
    model = make(Chain)
    model.middle.register_forward_hook(lambda module, args, output: kept.append(output))
    recording = recorded(model, ["last.weight"], (x,))
    with torch.no_grad():
        kept[0].add_(1)
    with pytest.raises(ReplayError, match="a cached output was changed since"):
        recording.replay(perturbed(model, ["last.weight"]))


def test_edited_weights_may_change(x):
    model = make(Chain)
    recording = recorded(model, ["last.weight"], (x,))
    with torch.no_grad():
        model.last.weight.mul_(2)
        model.last.bias.add_(1)  # not edited, but no answer depends on it
    assert_exact(recording, ["last.weight"], (x,))


class HandsOnByAttribute(Chain):
    """`extra` leaves a tensor behind that the model reads at the end."""

    def build(self):
        class Keeps(nn.Module):
            def forward(self, x):
                self.kept = x.square()
                return x

        return Keeps()

    def forward(self, x):
        return super().forward(x) + self.extra.kept


def test_value_handed_on_by_attribute_is_right_or_refused(x):
    model, other = make(HandsOnByAttribute), x.flip(0)
    functional_model, params = FunctionalModel(model, ["last.weight"]), perturbed(model, ["last.weight"])
    for _ in range(2):
        torch.testing.assert_close(functional_model(params, x=x), functional_call(model, params, (x,)))
        functional_model(params, x=other)
        with pytest.raises(ReplayError):
            functional_model(params, x=x)
        functional_model = FunctionalModel(model, ["last.weight"])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_legacy_weight_norm_can_be_replayed(x):
    model = make(Chain)
    nn.utils.weight_norm(model.first)  # sets `weight` before every call, also where `first` answers
    recording = recorded(model, ["last.weight"], (x,))
    assert answered_names(recording) == ["first", "extra", "middle"]
    assert_exact(recording, ["last.weight"], (x,))


def test_inference_tensors_are_not_trusted(x):
    with torch.inference_mode():
        frozen = x.clone()
    model = make(Chain)
    params = {"last.weight": model.last.weight.detach() * 2}
    functional_model = FunctionalModel(model, ["last.weight"])
    for _ in range(2):
        torch.testing.assert_close(functional_model(params, x=frozen), functional_call(model, params, (x,)))


def test_parameters_that_come_later_are_not_taken_for_recorded(x):
    model, names = make(Chain), ["middle.weight", "last.weight"]
    functional_model, params = FunctionalModel(model, names), perturbed(model, names)
    for names in ([], ["last.weight"], ["middle.weight", "last.weight"], ["middle.weight"], []):
        given = {name: params[name] for name in names}
        torch.testing.assert_close(functional_model(given, x=x), functional_call(model, given, (x,)))


# Leaving the model as it was


def test_forward_of_one_instance_survives(x):
    model = make(Chain)
    model.forward = lambda x, forward=model.forward: 2 * forward(x)  # as accelerate does
    model.middle.forward = lambda x, forward=model.middle.forward: forward(x) + 1
    own = {module: vars(module)["forward"] for module in (model, model.middle)}
    recording = recorded(model, ["last.weight"], (x,))
    assert_exact(recording, ["last.weight"], (x,))
    for module in model.modules():
        assert vars(module).get("forward") is own.get(module)
    assert (model(x) - 2 * Chain.forward(model, x)).abs().max() < 1e-12


@pytest.mark.parametrize("when", ["recording", "replay"])
def test_exception_leaves_no_patched_forward(when, x):
    model, failing = make(Chain), []

    def fail(module, args):
        if failing:
            raise ValueError("the model failed")

    model.last.register_forward_pre_hook(fail)
    if when == "replay":
        recording = recorded(model, ["last.weight"], (x,))
    failing.append(True)
    with pytest.raises(ValueError, match="the model failed"):
        if when == "recording":
            recorded(model, ["last.weight"], (x,))
        else:
            recording.replay(perturbed(model, ["last.weight"]))
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert torch.equal(F.relu(x), x.clamp(min=0))  # no mode is left on
    failing.clear()
    with record(model, [model.last.weight]) as recording:
        model(x)
    assert_exact(recording, ["last.weight"], (x,))
