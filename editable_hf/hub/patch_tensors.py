"""The tensors of a patch: which ones an edit changes, and their differences as one safetensors file."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError
from torch import Tensor, nn

from editable_hf.hub.delta import describe, known_encoding, rounding_error
from editable_hf.hub.fingerprint import digest, dtype_name, raw_bytes


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
    own = dict(model.named_parameters())
    for name, value in params.items():
        if name not in own:
            raise ValueError(
                f"The edit holds {name!r}, which {type(model).__name__} does not have; make the patch with the model "
                "that was edited."
            )
        if (own[name].dtype, own[name].shape) != (value.dtype, value.shape):
            raise ValueError(
                f"Expected {name!r} as {type(model).__name__} has it, {describe(own[name])}, but the edit holds "
                f"{describe(value)}; make the patch with the model that was edited."
            )
    pairs = {name: (own[name].detach(), value.detach()) for name, value in params.items()}
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
        own = codec.encode(old, new)
        edited = codec.apply(own, old)
        touched[name] = TouchedTensor(dtype_name(old), list(old.shape), digest(old), digest(edited))
        streams |= {f"{name}/{stream}": plane for stream, plane in own.items()}
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
        own: dict[str, dict[str, np.ndarray]] = {name: {} for name in tensors}
        for key, plane in streams.items():
            if plane.dtype != np.uint8 or plane.ndim != 1:
                raise ValueError(f"{key} holds {plane.dtype} {plane.shape}, and not bytes")
            name, stream = key.rsplit("/", 1)
            own[name][stream] = plane
        return {name: move(own[name], tensor) for name, tensor in tensors.items()}
    except (SafetensorError, zlib.error, KeyError, ValueError) as error:
        raise ValueError(
            f"The payload of the patch does not hold what patch.json says ({type(error).__name__}: {error}); download "
            "or save the patch again."
        ) from error
