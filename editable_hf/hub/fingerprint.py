"""Fingerprints: sha256 over what tensors are, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> np.ndarray:
    """The bits of a tensor in row-major order, `(number of bytes,)`; may share its memory."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def dtype_name(tensor: Tensor) -> str:
    """ "float32", "bfloat16" and so on."""
    return str(tensor.dtype).removeprefix("torch.")


def digest(tensor: Tensor) -> str:
    """sha256 over dtype, shape and bytes; the same on every device.

    Two NaNs are different if their bits are, and so are 0.0 and -0.0.
    """
    sha = hashlib.sha256(f"{dtype_name(tensor)} {list(tensor.shape)}\n".encode())
    sha.update(raw_bytes(tensor))
    return sha.hexdigest()


def fingerprint(digests: Mapping[str, str]) -> str:
    """sha256 over the names of tensors and their [`digest`]s, in whatever order they come."""
    lines = (f"{name}\0{value}\n" for name, value in sorted(digests.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def short(value: str) -> str:
    """What a message shows of a fingerprint."""
    return value[:12]
