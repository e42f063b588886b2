"""Linear layers as memories: a key goes in, a value comes out, and the weight may be stored either way around."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from editable_hf.core.editors import Params
from editable_hf.seams.torch_seam import intercepted
from editable_hf.seams.transformers_seam import Conv1D


class LinearLayer(NamedTuple):
    """A linear layer whose weight is edited.

    Attributes:
        weight: Qualified name of the weight.
        module: The layer.
    """

    weight: str
    module: nn.Module

    def shape(self, params: Params) -> torch.Size:
        """`(out_features, in_features)`."""
        shape = params[self.weight].shape
        return shape[::-1] if isinstance(self.module, Conv1D) else shape

    def add(self, params: Params, change: Tensor) -> Params:
        """`params` with `change`, `(out_features, in_features)`, added to the weight. GPT-2's stores its transpose."""
        change = change.T if isinstance(self.module, Conv1D) else change
        weight = params[self.weight]
        return {**params, self.weight: (weight.to(change.dtype) + change).to(weight.dtype)}


def linear_layers(model: nn.Module, weights: Iterable[str]) -> list[LinearLayer]:
    """The linear layers with these weights.

    Raises:
        ValueError: If one is not the weight of a linear layer.
    """
    layers = []
    for name in weights:
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, nn.Linear | Conv1D) or not name.endswith(".weight"):
            raise ValueError(
                f"{name} is not the weight of a linear layer, which alone this editor changes; name one by `layers`, "
                'such as "layers.3.mlp.down_proj.weight".'
            )
        layers.append(LinearLayer(name, module))
    return layers


@contextmanager
def inputs_kept(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Yields what last entered each of the modules within the block, with its graph."""
    kept: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, forward: Callable, features: Tensor) -> Tensor:
        kept[module] = features
        return forward(features)

    with intercepted(modules, keep):
        yield kept
