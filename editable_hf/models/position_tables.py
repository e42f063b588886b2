"""Sinusoidal position tables, which are constants."""

from __future__ import annotations

from torch import nn

from editable_hf.seams.transformers_seam import sinusoidal_tables


def freeze_position_tables(model: nn.Module) -> None:
    """Marks sinusoidal position tables as constants, which `from_pretrained` makes trainable (transformers 5.23).

    They never get a gradient, so several processes would wait for one and stop.
    """
    for table in sinusoidal_tables(model):
        table.weight.requires_grad_(False)
