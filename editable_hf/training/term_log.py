"""Means of the objective's terms over a logging window."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from editable_hf.core.editing import EditResult

_TERMS = ("base_loss", "edit_loss", "locality_loss", "edit_success_rate", "edit_num_steps")


class TermLog:
    """Sums each term until the means over all processes are asked for.

    What is not finite is in no mean: the update that it belongs to ends the training.

    Attributes:
        sums: Sum of each term on this process since the last [`means`].
        count: How often terms were added since then.
        not_finite: Terms of the update at work that are not finite, with their values.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forgets all terms."""
        self.not_finite: list[str] = []
        self.sums: dict[str, float] = dict.fromkeys(_TERMS, 0.0)
        self.count, self._counts = 0, dict.fromkeys(_TERMS, 0)

    def add(self, base: Tensor, edit: Tensor, locality: Tensor, results: Sequence[EditResult]) -> None:
        """One micro-batch: the terms of Eq. 2 before their weights, and the edits behind them."""
        rate, steps = ([getattr(each, name) for each in results] for name in ("success", "num_steps"))
        values = (base.item(), edit.item(), locality.item(), sum(rate) / len(rate), sum(steps) / len(steps))
        terms = dict(zip(_TERMS, values, strict=True))
        self.count += 1
        for name, value in terms.items():
            if math.isfinite(value):
                self.sums[name] += value
                self._counts[name] += 1
            else:
                self.not_finite.append(f"{name} is {value}")

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last call; every process must call it."""
        sums = torch.tensor([[*self.sums.values()], [*self._counts.values()]], device=accelerator.device)
        totals, counts = accelerator.reduce(sums, reduction="sum").tolist()
        triples = zip(_TERMS, totals, counts, strict=True)
        means = {name: total / count for name, total, count in triples if count > 0}
        self.reset()
        return means
