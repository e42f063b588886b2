"""Means of the objective's terms over a logging window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from editable_hf.core.editing import EditResult

_OF_EDITS = ("edit_loss", "locality_loss", "edit_success_rate", "edit_num_steps")


class TermLog:
    """Sums each term until the means over all processes are asked for.

    Attributes:
        sums: Sum of each term on this process since the last [`means`].
        count: How often terms were added.
    """

    def __init__(self):
        self._reset()

    def _reset(self) -> None:
        self.sums: dict[str, float] = dict.fromkeys(("base_loss", *_OF_EDITS, "edits_skipped"), 0.0)
        self.count = self._num_edited = 0

    def add(
        self, base: Tensor, edit: Tensor, locality: Tensor, results: Sequence[EditResult], num_skipped: int = 0
    ) -> None:
        """One micro-batch: the terms of Eq. 2 before their weights, the edits behind them, and how many were left out.

        Where none is left, the means of what belongs to edits do without this micro-batch.
        """
        terms = {"base_loss": base.item(), "edits_skipped": num_skipped / (num_skipped + len(results))}
        self.count += 1
        if results:
            self._num_edited += 1
            terms["edit_loss"], terms["locality_loss"] = edit.item(), locality.item()
            terms["edit_success_rate"] = sum(result.success for result in results) / len(results)
            terms["edit_num_steps"] = sum(result.num_steps for result in results) / len(results)
        for name, value in terms.items():
            self.sums[name] += value

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last call; every process must call it. `edits_skipped` is a fraction, there if not 0."""
        sums = torch.tensor([*self.sums.values(), self.count, self._num_edited], device=accelerator.device)
        *totals, count, num_edited = accelerator.reduce(sums, reduction="sum").tolist()
        counts = {name: num_edited if name in _OF_EDITS else count for name in self.sums}
        means = {name: total / counts[name] for name, total in zip(self.sums, totals, strict=True) if counts[name] > 0}
        self._reset()
        if not means["edits_skipped"]:
            del means["edits_skipped"]
        return means
