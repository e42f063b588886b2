"""Replays of models with hooks, within wrappers, and within one another."""

import pytest
import torch
from replay_checks import answered_names, assert_exact, perturbed, recorded
from torch import nn
from torch.func import functional_call

from editable_hf.core.functional import FunctionalModel
from editable_hf.core.replay import ReplayError, record


class Model(nn.Module):
    """Two layers, of which the last also sees the input."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.last = nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.first(x) + x)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().double()


@pytest.fixture
def x():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


LAST = ["last.weight"]


@pytest.mark.parametrize("with_kwargs", [True, False])
def test_hook_before_the_model_is_applied_once(model, x, with_kwargs):
    # It runs at every replay too, and must then be given what it was given first.
    if with_kwargs:
        model.register_forward_pre_hook(lambda module, args, kwargs: ((args[0] * 2,), kwargs), with_kwargs=True)
    else:
        model.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    recording = recorded(model, LAST, (x,))
    assert answered_names(recording) == ["first"]
    assert_exact(recording, LAST, (x,))


def test_inputs_are_told_apart_behind_a_hook(model, x):
    # The hook's result is all that the model sees; the recording must still keep the input whose id it is known by.
    model.register_forward_pre_hook(lambda module, args, kwargs: (args, {"x": kwargs["x"] * 2}), with_kwargs=True)
    functional_model, params = FunctionalModel(model, LAST), perturbed(model, LAST)
    for number in range(10):
        each = x + number  # freed after its turn, so that the next may get its id
        logits = functional_model(params, x=each)
        torch.testing.assert_close(logits, functional_call(model, params, (), {"x": each}), rtol=0, atol=1e-12)


@pytest.mark.parametrize("part", ["", "first", "first.0", "last"])
def test_hook_after_a_module(model, x, part):
    model.get_submodule(part).register_forward_hook(lambda module, args, output: output.square())
    recording = recorded(model, LAST, (x,))
    assert_exact(recording, LAST, (x,))


def test_hook_inside_a_module_sees_every_replay(model, x):
    seen = []
    model.first[0].register_forward_hook(lambda module, args, output: seen.append(output))
    recording = recorded(model, LAST, (x,))
    # `first` as a whole would not run it; the layer itself may answer.
    assert answered_names(recording) == ["first.0", "first.1"]
    recording.replay(perturbed(model, LAST))
    assert len(seen) == 2 and torch.equal(*seen)


def test_model_that_changes_its_own_input_in_place_is_refused(model, x):
    class Scales(Model):
        def forward(self, x):
            return super().forward(x.mul_(2))

    scales = Scales().double()
    recording = recorded(scales, LAST, (x,))
    with pytest.raises(ReplayError, match="An input, a weight or a cached output was changed"):
        recording.replay(perturbed(scales, LAST))


def test_two_calls_are_refused_also_after_the_moment(model, x):
    with pytest.raises(ReplayError, match="Model was called twice"), record(model, [model.last.weight]):
        model(x)
        model(x + 1)


class Wrapper(nn.Module):
    """As DistributedDataParallel: the model is an inner module, and the call gets about it by another way."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*[arg * 1 for arg in args], **kwargs)


def test_call_through_a_wrapper(model, x):
    with record(model, [model.last.weight]) as recording:
        Wrapper(Wrapper(model))(x)
    assert answered_names(recording) == ["first"]
    assert_exact(recording, LAST, (x,))


@pytest.mark.parametrize("stop", [True, False])
def test_recording_within_a_recording(model, x, stop):
    inner_watched, outer_watched = [model.last.weight], [model.first[0].weight]
    with record(model, outer_watched) as outer, record(model, inner_watched) as inner:
        model(x)
    assert answered_names(outer) == [] and answered_names(inner) == ["first"]
    assert_exact(outer, ["first.0.weight"], (x,))
    assert_exact(inner, LAST, (x,))
    # The one that stops ends the block of its own recording only.
    with record(model, inner_watched) as outer:
        with record(model, outer_watched, stop=stop) as inner:
            model(x)
            assert not stop, "the forward should have ended"
        if stop:
            assert inner.cached == []
            return
    assert answered_names(outer) == ["first"]
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_outer_recording_that_stops_ends_both_blocks(model, x):
    after = []
    with record(model, [model.first[0].weight], stop=True) as outer:
        with record(model, [model.last.weight]):
            model(x)
        after.append("inner block")
    assert not after and outer.cached == []
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert_exact(outer, ["first.0.weight"], (x,))


def test_replay_within_a_recording_of_another_model(model, x):
    recording, params = recorded(model, LAST, (x,)), perturbed(model, LAST)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(4, 4)

        def forward(self, x):
            return self.scale(recording.replay(params))

    outer = Outer().double()
    assert_exact(recorded(outer, ["scale.weight"], (x,)), ["scale.weight"], (x,))


class Stochastic(nn.Module):
    """Leaves out layers by turns, also the one just before the edited one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.dropped = None

    def forward(self, x):
        for index, layer in enumerate(self.layers):
            if index != self.dropped:
                x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("dropped", [0, 1])
@pytest.mark.parametrize("when", ["recording", "replay"])
@pytest.mark.parametrize("mixed_modes", [True, False])
def test_layer_that_is_dropped_before_the_edited_one_is_noticed(x, dropped, when, mixed_modes):
    model = Stochastic().double()
    model.dropped = dropped if when == "recording" else None
    recording = recorded(model, ["layers.2.weight"], (x,), mixed_modes=mixed_modes)
    assert recording.cached
    model.dropped = None if when == "recording" else dropped
    with pytest.raises(ReplayError, match="depends on chance or on its mode"):
        recording.replay(perturbed(model, ["layers.2.weight"]))


def test_layer_that_is_dropped_after_the_edited_one_is_no_matter(x):
    model = Stochastic().double()
    recording = recorded(model, ["layers.1.weight"], (x,))
    model.dropped = 2
    assert_exact(recording, ["layers.1.weight"], (x,))
