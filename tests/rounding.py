"""Equality up to rounding, for results that may come from different kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def assert_same_up_to_rounding(actual: Tensor, expected: Tensor, num_eps: float = 64) -> None:
    """Each entry differs by at most `num_eps` times the dtype's eps, of the largest entry's size.

    Processors add up in different orders, and one processor does so for weights that lie otherwise in memory: loaded
    ones are mapped from a file. Such sums differ in their last bits; a wrong weight shows a million times as much.
    """
    tolerance = num_eps * torch.finfo(expected.dtype).eps * expected.detach().abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
