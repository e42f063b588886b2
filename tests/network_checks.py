"""What the tests of the image networks share: layers written out by themselves, and models that are not new."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel


def with_random_statistics(model: PreTrainedModel) -> PreTrainedModel:
    """In float64 and eval mode, BatchNorm's statistics and weights far from those of a new model."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.05, 0.5)
            nn.init.normal_(module.weight, mean=1.0, std=0.3)
            nn.init.normal_(module.bias, std=0.3)
    return model.double().eval()


def random_images(size: int) -> Tensor:
    """Three of them, in float64, `(3, 3, size, size)`."""
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reference_norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """BatchNorm in eval mode, from named tensors."""
    keys = ("running_mean", "running_var", "weight", "bias")
    mean, variance, scale, shift = (state[f"{name}.{key}"].view(-1, 1, 1) for key in keys)
    return (x - mean) * scale / torch.sqrt(variance + 1e-5) + shift


def reference_convolution(state: Mapping[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    """Without a bias, padded so that only the stride makes the image smaller."""
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def reference_max_pool(x: Tensor) -> Tensor:
    """Over 3x3 pixels, every other of them."""
    return F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))


def assert_logits(model: PreTrainedModel, images: Tensor, expected: Tensor) -> None:
    assert expected.std(0).min() > 0.01  # the images make a difference
    torch.testing.assert_close(model(images).logits, expected, rtol=1e-10, atol=1e-12)


def num_parameters(build: Callable[[], PreTrainedModel]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())
