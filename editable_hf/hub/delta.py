"""The difference between an old and a new tensor as bytes: exact, or rounded and still exactly undone.

Measured on one decoder layer of `transformer_iwslt_de_en` (3,154,432 parameters, 12.62 MB in float32; RMSProp with
alpha 1e-3, 3 steps, so that nearly every weight moves by about 1e-3):

| encoding | float32 | float16 | bfloat16 | what applying gives |
|---|---|---|---|---|
| (the tensors themselves) | 12.62 MB | 6.31 MB | 6.31 MB | |
| `xor` | 9.21 MB | 4.18 MB | 2.99 MB | the edited tensors bit for bit |
| `bf16` | 4.53 MB | 4.16 MB | 3.35 MB | the old tensors plus the difference rounded to bfloat16 |

So `bf16` is for float32 models. 0.24 MB of its 4.53 are what undoing needs, and it loses 0.16% of the edit. Counting
the floats between old and new instead of XOR gives 8.92 MB: the low mantissa bits are noise, there is little to gain.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from editable_hf.hub.fingerprint import dtype_name, raw_bytes

Streams = Mapping[str, np.ndarray]  # uint8, one entry for each byte plane: "xor.0" to "xor.3" for float32

_ROUNDED_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Level 9 takes five times as long for half a percent.
_ZLIB_LEVEL = 6


class Encoding(NamedTuple):
    """How the difference of two tensors of one dtype and shape is written.

    Attributes:
        encode: Streams from the old and the new tensor.
        apply: The edited tensor from the streams and the old tensor, on the CPU.
        revert: The old tensor, bit for bit, from the streams and the edited tensor, on the CPU.
    """

    encode: Callable[[Tensor, Tensor], Streams]
    apply: Callable[[Streams, Tensor], Tensor]
    revert: Callable[[Streams, Tensor], Tensor]


def _encode_xor(old: Tensor, new: Tensor) -> Streams:
    return _pack("xor", raw_bytes(old) ^ raw_bytes(new), old.element_size())


def _flip(streams: Streams, tensor: Tensor) -> Tensor:
    return _with_bits(tensor, raw_bytes(tensor) ^ _unpack(streams, "xor", tensor.numel(), tensor.element_size()))


def _encode_bf16(old: Tensor, new: Tensor) -> Streams:
    """The rounded step, and what must be flipped in "edited minus step" to have the old bits again.

    Where the edited value has a larger exponent than the old one, the addition has lost bits of the old value: about
    4% of the weights. The flips are 0 elsewhere and take next to no space.
    """
    if old.dtype not in _ROUNDED_DTYPES:
        raise ValueError(
            f"Encoding 'bf16' expects tensors in one of {', '.join(str(each) for each in _ROUNDED_DTYPES)}, got "
            f"{old.dtype}; use encoding 'xor', which takes any."
        )
    old, new = old.detach().cpu(), new.detach().cpu()
    step = (_wide(new) - _wide(old)).to(torch.bfloat16)
    edited = _moved(old, step, 1)
    if not all(each.isfinite().all() for each in (old, new, step, edited)):
        # Besides, processors do not agree on the bits of the NaN that an addition gives.
        raise ValueError(
            "Encoding 'bf16' expects finite values before and after the edit, got infinite ones or NaN; use encoding "
            "'xor', which takes any."
        )
    flips = raw_bytes(old) ^ raw_bytes(_moved(edited, step, -1))
    return {**_pack("step", raw_bytes(step), 2), **_pack("flips", flips, old.element_size())}


def _apply_bf16(streams: Streams, old: Tensor) -> Tensor:
    return _moved(old.detach().cpu(), _step(streams, old), 1)


def _revert_bf16(streams: Streams, edited: Tensor) -> Tensor:
    back = _moved(edited.detach().cpu(), _step(streams, edited), -1)
    return _with_bits(back, raw_bytes(back) ^ _unpack(streams, "flips", back.numel(), back.element_size()))


def _step(streams: Streams, tensor: Tensor) -> Tensor:
    bits = _unpack(streams, "step", tensor.numel(), 2)
    return torch.from_numpy(bits).view(torch.bfloat16).reshape(tensor.shape)


def _moved(tensor: Tensor, step: Tensor, sign: int) -> Tensor:
    # On the CPU and in one addition, which IEEE 754 defines to the last bit.
    return torch.add(_wide(tensor), step.to(_wide(tensor).dtype), alpha=sign).to(tensor.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _with_bits(like: Tensor, bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits).view(like.dtype).reshape(like.shape)


def _pack(stream: str, bits: np.ndarray, width: int) -> Streams:
    """Byte planes (all first bytes of the values, all second bytes, ...), compressed where that makes them smaller.

    Signs and exponents differ little and compress well once they are apart from the noise in the mantissas.
    """
    packed = {}
    for number, plane in enumerate(bits.reshape(-1, width).T):
        plane = np.ascontiguousarray(plane)
        compressed = np.frombuffer(zlib.compress(plane, _ZLIB_LEVEL), np.uint8)
        packed[f"{stream}.{number}"] = compressed if compressed.size < plane.size else plane
    return packed


def _unpack(streams: Streams, stream: str, count: int, width: int) -> np.ndarray:
    """The bits that [`_pack`] was given, for `count` values of `width` bytes."""
    planes = [_inflate(streams[f"{stream}.{number}"], count) for number in range(width)]
    return np.stack(planes, axis=1).reshape(-1)


def _inflate(plane: np.ndarray, count: int) -> np.ndarray:
    if plane.size == count:  # only shorter ones are compressed
        return plane
    # Bounded, so that a malicious file cannot fill the memory.
    inflater = zlib.decompressobj()
    raw = inflater.decompress(plane.tobytes(), count + 1)
    if len(raw) != count or not inflater.eof:
        raise zlib.error(f"expected {count} bytes of a plane, got {len(raw)}")
    return np.frombuffer(raw, np.uint8)


ENCODINGS = {
    "xor": Encoding(_encode_xor, _flip, _flip),
    "bf16": Encoding(_encode_bf16, _apply_bf16, _revert_bf16),
}


def rounding_error(old: Tensor, new: Tensor, edited: Tensor) -> tuple[float, float, float]:
    """How far `edited` is from `new`: largest absolute error, squared error, and the edit's own squared length."""
    old, new, edited = (each.detach().cpu().double() for each in (old, new, edited))
    error = (edited - new).abs()
    return error.max().item(), error.square().sum().item(), (new - old).square().sum().item()


def known_encoding(name: str) -> Encoding:
    """The encoding of that name.

    Raises:
        ValueError: If there is none.
    """
    if name not in ENCODINGS:
        raise ValueError(f"Unknown `encoding` {name!r}. Choose one of: {', '.join(ENCODINGS)}.")
    return ENCODINGS[name]


def describe(tensor: Tensor) -> str:
    """Dtype and shape for a message: "float32 (512, 1024)"."""
    return f"{dtype_name(tensor)} {tuple(tensor.shape)}"
