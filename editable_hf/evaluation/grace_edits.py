"""GRACE measured as the editors of parameters are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from editable_hf.baselines.grace import Grace
from editable_hf.core.editing import EditResult
from editable_hf.evaluation.edit_evaluator import EditRecord, Request
from editable_hf.evaluation.fact_edits import FactEditEvaluator
from editable_hf.evaluation.verified_edit import joint_constraint


class GraceEditEvaluator(FactEditEvaluator):
    """[`FactEditEvaluator`] for a codebook beside a layer: `layers` is GRACE's, and an editor makes an empty codebook.

    Example:
        >>> GraceEditEvaluator(model, tokenizer, texts, layers=layer).evaluate(  # doctest: +SKIP
        ...     requests, lambda: Grace(model, layer, radius=0.5), max_steps=100
        ... )
    """

    def _measure(
        self, requests: Sequence[Request], editor: Callable[[], Grace], max_steps: int, progress: str | None
    ) -> list[EditRecord]:
        self._grace = editor()
        return super()._measure(requests, editor, max_steps, progress)

    def in_a_row(
        self, requests: Sequence[Request], editor: Callable[[], Grace], checkpoints: Iterable[int], **options: Any
    ) -> list[dict[str, Any]]:
        """As of other editors; all edits are in one codebook."""
        self._grace = editor()
        return super().in_a_row(requests, editor, checkpoints, **options)

    def edit(
        self, requests: Sequence[Request], editor: Callable[[], Grace], max_steps: int
    ) -> tuple[EditResult, float, dict[str, int]]:
        """Writes the requests to the codebook; the seconds for each."""
        self._remember(map(self._asked, requests))  # while the codebook does not answer
        start = time.perf_counter()
        result = self._grace.edit(joint_constraint(requests, self.model), max_steps)
        return result, (time.perf_counter() - start) / len(requests), {}

    def carrying(self, params: Mapping[str, Tensor]) -> AbstractContextManager:
        """Within it the model answers from the codebook."""
        return self._grace.applied()
