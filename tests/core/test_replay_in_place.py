"""Models that change tensors and containers in place: a replay's result is the whole model's, or it is refused."""

import pytest
import torch
from replay_checks import Chain, answered_names, assert_exact, make, names_under, perturbed, recorded
from torch import nn
from torch.func import functional_call

from editable_hf.core.replay import ReplayError


@pytest.fixture
def x():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class ReluAfter(Chain):
    def forward(self, x):
        hidden = self.first(x)
        hidden.relu_()
        return self.last(torch.tanh(self.middle(hidden)))


class ResidualInPlace(Chain):
    def forward(self, x):
        identity = self.first(x)
        hidden = self.middle(identity)
        hidden += identity  # after the moment if `middle` is edited, before it if `last` is
        return self.last(torch.tanh(hidden))


class AddsToEarlier(Chain):
    """Changes the output of `first`, after `middle` was used."""

    def forward(self, x):
        identity = self.first(x)
        identity += self.middle(x)
        return self.last(torch.tanh(identity))


class Doubles(nn.Module):
    def forward(self, x):
        x.mul_(2)


class DoublesLinear(nn.Linear):
    def forward(self, x):
        x[:, 1:] += super().forward(x.clone())[:, 1:]


class IgnoredReturn(Chain):
    def build(self):
        return Doubles()

    def forward(self, x):
        hidden = self.first(x)
        self.extra(hidden)
        return self.last(torch.tanh(self.middle(hidden)))


class WritesToView(IgnoredReturn):
    def build(self):
        return DoublesLinear(4, 4)


class HookInPlace(Chain):
    def __init__(self):
        super().__init__()
        self.middle.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
        self.first.register_forward_hook(lambda module, args, output: output.add_(1))


class UpdatesDict(nn.Module):
    """Hands on its result by replacing an entry of what it was given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, state):
        state["x"] = self.linear(state["x"])


class PassesDict(Chain):
    def build(self):
        return UpdatesDict()

    def forward(self, x):
        state = {"x": self.first(x)}
        self.extra(state)
        return self.last(torch.tanh(self.middle(state["x"])))


class UpdatesList(UpdatesDict):
    def forward(self, state):
        state[0] = self.linear(state[0])
        return state


class PassesList(Chain):
    def build(self):
        return UpdatesList()

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.extra([self.first(x)])[0])))


IN_PLACE = [
    ReluAfter,
    ResidualInPlace,
    AddsToEarlier,
    IgnoredReturn,
    WritesToView,
    HookInPlace,
    PassesDict,
    PassesList,
]
WITH_EXTRA = [WritesToView, PassesDict, PassesList]
CASES = [(build, part) for build in IN_PLACE for part in ("first", "middle", "last")]


@pytest.mark.parametrize(("build", "part"), [*CASES, *((build, "extra") for build in WITH_EXTRA)])
def test_changes_in_place(build, part, x):
    model = make(build)
    names = names_under(model, part)
    assert_exact(recorded(model, names, (x,)), names, (x,))


def test_block_that_is_changed_in_place_after_the_moment_is_not_skipped(x):
    model = make(AddsToEarlier)
    assert answered_names(recorded(model, ["middle.weight"], (x,))) == []
    model = make(ResidualInPlace)
    assert answered_names(recorded(model, ["last.weight"], (x,))) == ["first"]


class GrowsList(Chain):
    """A list that a module returns grows after the moment."""

    def build(self):
        class Pair(nn.Module):
            def forward(self, x):
                return [x, x * 2]

        return Pair()

    def forward(self, x):
        features = self.extra(self.first(x))
        features.append(self.middle(features[0]))
        return self.last(sum(features))


@pytest.mark.parametrize("build", [GrowsList, AddsToEarlier])
def test_change_after_a_stopped_recording_is_right_or_refused(build, x):
    model = make(build)
    recording = recorded(model, ["middle.weight"], (x,), stop=True)
    num_right = 0
    with torch.no_grad():
        for seed in range(3):
            params = perturbed(model, ["middle.weight"], seed)
            try:
                replayed = recording.replay(params)
            except ReplayError:
                continue
            torch.testing.assert_close(replayed, functional_call(model, params, (x,)), rtol=0, atol=1e-12)
            num_right += 1
    assert num_right >= 1
