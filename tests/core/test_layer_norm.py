"""The layer norm of edits that are differentiated: equal to torch's in all derivatives, in fewer kernels."""

from __future__ import annotations

import pytest
import torch
from tiny_models import marian_config
from torch import nn
from torch.nn import functional as F
from transformers import MarianMTModel

from editable_hf.core.layer_norm import layer_norm, quick_layer_norms
from editable_hf.experiments.timing import count_kernels


def inputs(shape=(3, 4, 6)):
    generator = torch.Generator().manual_seed(0)
    sizes = [shape, shape[-1:], shape[-1:]]
    return [torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True) for size in sizes]


def norm(x, weight, bias):
    return layer_norm(x, weight, bias, 1e-5)


def test_derivatives_against_finite_differences():
    assert torch.autograd.gradcheck(norm, inputs())
    assert torch.autograd.gradgradcheck(norm, inputs())


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)])
def test_second_derivative_is_that_of_torch(used):
    """Of a function of some of the first derivatives, so that the others are not there."""
    seconds = []
    for function in (norm, lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, 1e-5)):
        tensors = inputs()
        scale = torch.linspace(-1, 1, tensors[0].numel(), dtype=torch.float64).view_as(tensors[0]).requires_grad_()
        first = torch.autograd.grad((function(*tensors).sin() * scale).sum(), tensors, create_graph=True)
        value = sum((first[index] ** 3).sum() for index in used)
        seconds.append([function(*tensors), *first, *torch.autograd.grad(value, [*tensors, scale])])
    for mine, theirs in zip(*seconds, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


def test_third_derivative_is_refused():
    x, weight, bias = inputs()
    (first,) = torch.autograd.grad(norm(x, weight, bias).sin().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


def test_kernels_of_the_second_derivative():
    def twice(function):
        tensors = inputs()
        first = torch.autograd.grad(function(*tensors).sin().sum(), tensors, create_graph=True)
        torch.autograd.grad(sum((each**2).sum() for each in first), tensors)

    counts = [
        count_kernels(lambda: twice(function))  # noqa: B023
        for function in (norm, lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, 1e-5))
    ]
    assert counts[1] - counts[0] >= 50


def test_only_plain_layer_norms_are_replaced_and_put_back():
    class Other(nn.LayerNorm):
        pass

    model = nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4, bias=False), Other(4), nn.LayerNorm((2, 4)))
    x = torch.randn(3, 2, 4, requires_grad=True)
    with quick_layer_norms(model):
        names = [type(module(x).grad_fn).__name__ for module in model]
        assert model[0](x.to(torch.bfloat16).float()).dtype == torch.float32
    assert names[0] == "_LayerNormBackward" and "_LayerNormBackward" not in names[1:]
    assert type(model[0](x).grad_fn).__name__ == "NativeLayerNormBackward0"


def test_all_layer_norms_of_a_marian_are_replaced():
    model = MarianMTModel(marian_config())
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    with quick_layer_norms(model):
        assert norms and all("forward" in vars(module) for module in norms)
    assert not any("forward" in vars(module) for module in norms)
