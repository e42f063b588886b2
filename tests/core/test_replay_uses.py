"""When an edited weight is used, and which modules are called in which order."""

import warnings

import pytest
import torch
from replay_checks import Chain, answered_names, assert_exact, make, perturbed, recorded
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from editable_hf.core.replay import ReplayError


@pytest.fixture
def x():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def bias_gelu(x, bias):
    return F.gelu(x + bias)


with warnings.catch_warnings():
    # torch warns of what users' models may still hold: a DeprecationWarning, from 2.14 on a FutureWarning.
    warnings.simplefilter("ignore")
    scripted_bias_gelu = torch.jit.script(bias_gelu)


class Ensemble(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return torch.vmap(lambda column, weight: column * weight.sum(), in_dims=(1, 0), out_dims=1)(x, self.weight)


class ScriptedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return scripted_bias_gelu(x, self.weight)


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad * weight, (grad * x).sum(0)


class CustomFunction(ScriptedBias):
    def forward(self, x):
        return _Scale.apply(x, self.weight)


class AtenCall(ScriptedBias):
    def forward(self, x):
        return torch.ops.aten.mul.Tensor(x, self.weight)


class ReadsNumbers(ScriptedBias):
    def forward(self, x):
        return x * self.weight.detach().numpy().sum() + self.weight


@pytest.mark.parametrize("build", [Ensemble, ScriptedBias, CustomFunction, AtenCall, ReadsNumbers])
def test_every_kind_of_use_is_noticed(build, x):
    class Model(Chain):
        def build(self):
            return build()

    recording = recorded(make(Model), ["extra.weight"], (x,))
    assert "extra" not in answered_names(recording) and "middle" not in answered_names(recording)
    assert_exact(recording, ["extra.weight"], (x,))


class HidesUse(nn.Module):
    """Uses its weight where it is not seen, and hands the result to an inner module."""

    def __init__(self):
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.randn(4)), nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(scripted_bias_gelu(x, self.weight))


def test_inner_modules_after_an_unseen_use_do_not_answer(x):
    class Model(Chain):
        def build(self):
            return HidesUse()

    recording = recorded(make(Model), ["extra.weight"], (x,))
    assert answered_names(recording) == ["first"]
    assert_exact(recording, ["extra.weight"], (x,))


class Borrows(nn.Module):
    def forward(self, hidden, layer):
        return layer.weight.sum() * hidden


class IsGiven(Chain):
    """Hands the last layer as an object to a module that owns nothing; `middle` depends on what it does."""

    def build(self):
        return Borrows()

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.extra(self.first(x), self.last))))


class IsHooked(Chain):
    """A hook within `extra` uses the last layer's weight; `middle` depends on it."""

    def build(self):
        inner = nn.Linear(4, 4)
        inner.register_forward_hook(lambda module, args, output: output * self.last.weight.sum())
        return nn.Sequential(inner)


@pytest.mark.parametrize("build", [IsGiven, IsHooked])
def test_use_by_a_module_that_owns_nothing_edited_is_noticed(build, x):
    recording = recorded(make(build), ["last.weight"], (x,))
    assert "middle" not in answered_names(recording)
    assert_exact(recording, ["last.weight"], (x,))


def test_looking_at_shapes_and_types_is_no_use(x):
    class Model(Chain):
        def forward(self, x):
            weight = self.last.weight
            assert weight.dtype == x.dtype and weight.device == x.device and weight.ndim == weight.dim() == 2
            hidden = self.middle(self.first(x[:, : weight.shape[1]]))
            return self.last(torch.tanh(hidden)) * weight.size(0) / weight.numel()

    recording = recorded(make(Model), ["last.weight"], (x,))
    assert answered_names(recording) == ["first", "middle"]
    assert_exact(recording, ["last.weight"], (x,))


# Order of calls


class CalledTwice(Chain):
    """`first` before the edited layer and after it."""

    def forward(self, x):
        return self.last(torch.tanh(self.first(torch.tanh(self.middle(self.first(x))))))


def test_shared_module_called_before_and_after_the_moment(x):
    recording = recorded(make(CalledTwice), ["middle.weight"], (x,))
    assert answered_names(recording) == ["first"]
    assert_exact(recording, ["middle.weight"], (x,))


class Alternates(Chain):
    """Another branch at every second call."""

    def build(self):
        self.calls = 0
        return nn.Linear(4, 4)

    def forward(self, x):
        self.calls += 1
        hidden = self.first(x) if self.calls % 2 else self.extra(x)
        return self.last(torch.tanh(self.middle(hidden)))


class Skips(Alternates):
    """Leaves `extra` out at every second call."""

    def forward(self, x):
        self.calls += 1
        hidden = self.first(x)
        hidden = self.extra(hidden) if self.calls % 2 else hidden
        return self.last(torch.tanh(self.middle(hidden)))


@pytest.mark.parametrize("build", [Alternates, Skips])
def test_other_modules_than_recorded_are_refused(build, x):
    model = make(build)
    recording = recorded(model, ["middle.weight"], (x,))
    with pytest.raises(ReplayError, match="which modules it runs depends on chance or on its mode"):
        recording.replay(perturbed(model, ["middle.weight"]))
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_edited_layer_that_the_recorded_forward_skipped_is_run(x):
    model = make(Skips)
    model.calls = 1
    recording = recorded(model, ["extra.weight"], (x,))  # the second call skips it, the third does not
    assert recording.cached == []
    params = perturbed(model, ["extra.weight"])
    replayed = recording.replay(params)
    model.calls = 0
    torch.testing.assert_close(replayed, functional_call(model, params, (x,)), rtol=0, atol=1e-12)
