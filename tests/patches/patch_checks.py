"""What the tests of patches share: edits that need no gradient, and comparisons bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from editable_hf.core import EditResult, select_parameters

LAYER = "model.decoder.layers.1"
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def made_up_result(model: nn.Module, layers, seed: int = 0, scale: float = 1e-3) -> EditResult:
    """An edit that moves every weight of `layers` by about `scale`, up or down."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, parameter in select_parameters(model, layers).items():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        params[name] = (parameter.detach() + scale * noise.sign() * (1 + 0.1 * noise.abs())).to(parameter.dtype)
    return EditResult(params, True, 3, torch.tensor(-0.5), [2.0, 1.0, 0.25, -0.5])


def bits(tensor: Tensor) -> Tensor:
    """The bit patterns as integers, so that NaN equals itself and -0.0 does not equal 0.0."""
    return tensor.detach().cpu().contiguous().view(-1).view(BITS[tensor.element_size()])


def all_bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the bits of every parameter and buffer."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: bits(tensor).clone() for name, tensor in tensors.items()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
