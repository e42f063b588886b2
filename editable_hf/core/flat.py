"""Many tensors as few vectors, so that elementwise work on all of them is a handful of kernels.

A decoder layer has 26 tensors. On a GPU a step of the editor costs as much time for each small one as for the largest:
launching a kernel takes longer than running it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class FlatLayout:
    """How named tensors are laid out in one vector for each dtype and device.

    Args:
        tensors: By name; decide order, shapes, dtypes and devices.

    Attributes:
        shapes: Of each tensor, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._groups: dict[str, list[str]] = {}
        for name, tensor in tensors.items():
            self._groups.setdefault(f"{tensor.dtype} on {tensor.device}", []).append(name)
        self._sizes = {key: [tensors[name].numel() for name in names] for key, names in self._groups.items()}

    def pack(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors one behind the other, a new vector for each group; differentiable."""
        return {key: torch.cat([tensors[name].flatten() for name in names]) for key, names in self._groups.items()}

    def unpack(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of the vectors by name, in the order of the tensors that made the layout; differentiable.

        Rows of vectors, `(num_edits, size)`, give tensors with that dimension before their own.
        """
        parts = {
            name: part
            for key, names in self._groups.items()
            for name, part in zip(names, vectors[key].split(self._sizes[key], -1), strict=True)
        }
        return {name: parts[name].view((*parts[name].shape[:-1], *shape)) for name, shape in self.shapes.items()}
