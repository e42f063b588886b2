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

import hashlib
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

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
            f"Encoding 'bf16' expects tensors in one of {', '.join(str(dtype) for dtype in _ROUNDED_DTYPES)}, got "
            f"{old.dtype}; use encoding 'xor', which takes any."
        )
    old, new = old.detach().cpu(), new.detach().cpu()
    step = (_wide(new) - _wide(old)).to(torch.bfloat16)
    edited = _moved(old, step, 1)
    if not all(tensor.isfinite().all() for tensor in (old, new, step, edited)):
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
    old, new, edited = (tensor.detach().cpu().double() for tensor in (old, new, edited))
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


@dataclass(frozen=True)
class TouchedTensor:
    """A parameter that a patch changes.

    Attributes:
        dtype: "float32" and so on.
        shape: Its shape.
        before: sha256 over dtype, shape and bytes without the patch.
        after: The same with the patch.
    """

    dtype: str
    shape: list[int]
    before: str
    after: str


def changed_tensors(model: nn.Module, params: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Old and new value of each parameter that is not bit for bit the same in `params`.

    Raises:
        ValueError: If the model has no such parameters, or all of them are as they were.
    """
    before = dict(model.named_parameters())
    for name, value in params.items():
        if name not in before:
            raise ValueError(
                f"The edit holds {name!r}, which {type(model).__name__} does not have; make the patch with the model "
                "that was edited."
            )
        if (before[name].dtype, before[name].shape) != (value.dtype, value.shape):
            raise ValueError(
                f"Expected {name!r} as {type(model).__name__} has it, {describe(before[name])}, but the edit holds "
                f"{describe(value)}; make the patch with the model that was edited."
            )
    pairs = {name: (before[name].detach(), value.detach()) for name, value in params.items()}
    changed = {name: pair for name, pair in pairs.items() if not np.array_equal(*map(raw_bytes, pair))}
    if not changed:
        raise ValueError(
            f"Expected an edit that changes the model, but its {len(params)} parameters are those that the "
            f"{type(model).__name__} has. Either the constraint held from the start (0 steps), and there is nothing "
            "to patch, or the edit is applied already: make the patch first."
        )
    return changed


def encode_tensors(
    changed: Mapping[str, tuple[Tensor, Tensor]], encoding: str
) -> tuple[dict[str, TouchedTensor], bytes, dict[str, float] | None]:
    """What is touched, the safetensors file with the differences, and what rounding loses (`None` for nothing)."""
    codec = known_encoding(encoding)
    touched, streams, errors = {}, {}, []
    for name, (old, new) in changed.items():
        planes = codec.encode(old, new)
        edited = codec.apply(planes, old)
        touched[name] = TouchedTensor(dtype_name(old), list(old.shape), digest(old), digest(edited))
        streams |= {f"{name}/{stream}": plane for stream, plane in planes.items()}
        if encoding != "xor":
            errors.append(rounding_error(old, new, edited))
    rounding = None
    if errors:
        largest, lost, moved = zip(*errors, strict=True)
        # A move from 0.0 to -0.0 has no length.
        relative = math.sqrt(sum(lost) / sum(moved)) if sum(moved) else 0.0
        rounding = {"max_abs_error": max(largest), "relative_error": relative}
    return touched, safetensors.numpy.save(streams), rounding


def moved_tensors(
    payload: bytes, encoding: str, tensors: Mapping[str, Tensor], backwards: bool = False
) -> dict[str, Tensor]:
    """The tensors with the differences applied, or taken back, on the CPU.

    Raises:
        ValueError: If the payload does not fit the tensors.
    """
    codec = known_encoding(encoding)
    move = codec.revert if backwards else codec.apply
    try:
        streams = safetensors.numpy.load(payload)
        planes: dict[str, dict[str, np.ndarray]] = {name: {} for name in tensors}
        for key, plane in streams.items():
            if plane.dtype != np.uint8 or plane.ndim != 1:
                raise ValueError(f"{key} holds {plane.dtype} {plane.shape}, and not bytes")
            name, stream = key.rsplit("/", 1)
            planes[name][stream] = plane
        return {name: move(planes[name], tensor) for name, tensor in tensors.items()}
    except (SafetensorError, zlib.error, KeyError, ValueError) as error:
        raise ValueError(
            f"The payload of the patch does not hold what patch.json says ({type(error).__name__}: {error}); download "
            "or save the patch again."
        ) from error


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
