"""Sinusoidal position tables, which are constants."""

from __future__ import annotations

from torch import nn


def freeze_position_tables(model: nn.Module) -> None:
    """Marks sinusoidal position tables as constants, which `from_pretrained` makes trainable (transformers 5.23).

    They never get a gradient, so several processes would wait for one and stop.
    """
    for module in model.modules():
        if type(module).__name__.endswith("SinusoidalPositionalEmbedding") and isinstance(module, nn.Embedding):
            module.weight.requires_grad_(False)
