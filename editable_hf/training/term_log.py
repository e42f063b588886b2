"""Means of the objective's terms over a logging window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from editable_hf.core.editing import EditResult


class TermLog:
    """Sums each term until the means over all processes are asked for.

    Attributes:
        sums: Sum of each term on this process since the last [`means`].
        count: How often terms were added.
    """

    def __init__(self):
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, base: Tensor, edit: Tensor, locality: Tensor, results: Sequence[EditResult]) -> None:
        """One micro-batch: the three terms of Eq. 2 before their weights, and the edits behind them."""
        self.count += 1
        terms = {
            "base_loss": base.item(),
            "edit_loss": edit.item(),
            "locality_loss": locality.item(),
            "edit_success_rate": sum(result.success for result in results) / len(results),
            "edit_num_steps": sum(result.num_steps for result in results) / len(results),
        }
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last call; every process must call it."""
        sums = torch.tensor([*self.sums.values(), float(self.count)], device=accelerator.device)
        *totals, count = accelerator.reduce(sums, reduction="sum").tolist()
        means = {name: total / count for name, total in zip(self.sums, totals, strict=True)}
        self.sums, self.count = {}, 0
        return means
