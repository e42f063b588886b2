"""What edits do: drawdown, success rate and number of steps (sections 4.1 and 4.4), for any kind of model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from editable_hf.core.editing import AnyEditor, EditResult
from editable_hf.evaluation.bootstrap import mean_row
from editable_hf.evaluation.records import measured
from editable_hf.evaluation.two_way import interval_of
from editable_hf.launch import launched_processes

Request = Mapping[str, Any]
EditRecord = dict[str, Any]


class EditEvaluator(ABC):
    """Measures edits of one model over one test set: each by itself, from the unedited model.

    A subclass says how a group of edits is measured and which values of a record its table shows.

    Attributes:
        request_keys: Entries of a request that tell it from others; every record repeats them.
        group_size: Edits that are measured together.
    """

    request_keys: tuple[str, ...]
    group_size: int = 1

    @abstractmethod
    def _measure(
        self, requests: Sequence[Request], editor: AnyEditor, max_steps: int, progress: str | None, **options: Any
    ) -> list[EditRecord]:
        """The records of a group of edits that are measured together."""

    @abstractmethod
    def _columns(self, records: Sequence[EditRecord]) -> dict[str, list[float]]:
        """The values of each column of the table, one for each edit."""

    def resampled(self, records: Sequence[EditRecord]) -> dict[str, np.ndarray]:
        """Means for resampled edits and test examples, see [`resampled_means`], by key of the row; none by default."""
        return {}

    def evaluate(
        self,
        requests: Iterable[Request],
        editor: AnyEditor,
        *,
        max_steps: int = 10,
        path: Path | None = None,
        progress: str | None = "edits",
        shard: bool = True,
        **options: Any,
    ) -> list[EditRecord]:
        """Applies each request by itself to the unedited model and measures what changed.

        Under several processes (`accelerate launch`) all of them must call this, with the same arguments. Each
        measures its share of the edits; all get all records, the same ones that a process alone would get.

        Args:
            requests: Rows of an edit-request dataset.
            editor: How to edit.
            max_steps: k in Eq. 1.
            path: JSONL file that gets one line for each edit, as soon as those measured together with it are done;
                edits it holds already are not repeated. The main process alone reads and writes it.
            progress: Title of the progress bar of the main process, none if `None`.
            shard: Several processes share the work. Without it, each that calls this measures all edits by itself.
            options: Of the constraint; see the class.

        Returns:
            One record for each request, see the class. All have the request's own `request_keys`, `success`
            (`l_e <= 0`), `num_steps`, `loss_before` and `loss_after` (nats), `num_changed` and `edit_seconds`; those
            that met NaN or infinity have `failure` (see [`EditResult`]), and `None` for a loss that is not finite.

        Raises:
            ValueError: If `path` holds edits of other requests.
        """
        title = progress if launched_processes().is_main_process or not shard else None

        def measure(group: Sequence[Request]) -> list[EditRecord]:
            return self._measure(group, editor, max_steps, None if title is None else "batches", **options)

        def check(request: Request, record: EditRecord) -> None:
            ours, theirs = ([each[key] for key in self.request_keys] for each in (request, record))
            if ours != theirs:
                raise ValueError(
                    f"{path} holds the edit of {theirs} where that of {ours} is due: it is of other requests. Move it "
                    "away, or give another path."
                )

        how = {"path": path, "progress": progress, "shard": shard, "check": check}
        return measured(list(requests), self.group_size, measure, **how)

    def _summary(self, name: str, records: Sequence[EditRecord], **extra: Any) -> dict[str, Any]:
        """A row with the mean and the 95% bootstrap interval of each column: over the edits, and for those that are
        `resampled` over the test examples, too."""
        columns = self._columns(records)
        columns |= {
            "success_rate": [record["success"] for record in records],
            "num_steps": [record["num_steps"] for record in records],
            "already_satisfied": [record["num_steps"] == 0 and record["success"] for record in records],
            "edit_seconds": [record["edit_seconds"] for record in records],
        }
        row = mean_row(name, columns)
        for key, samples in self.resampled(records).items():
            _, *row["intervals"][key] = interval_of(row[key], samples)
        return {**row, "num_failures": sum("failure" in record for record in records), **extra}


def edit_record(request: Request, keys: Sequence[str], result: EditResult, seconds: float) -> EditRecord:
    """What every evaluator's record of an edit has."""
    before, after = (value if math.isfinite(value) else None for value in (result.history[0], result.history[-1]))
    return {
        **{key: request[key] for key in keys},
        "success": result.success,
        "num_steps": result.num_steps,
        "loss_before": before,
        "loss_after": after,
        "edit_seconds": seconds,
        **({} if result.failure is None else {"failure": result.failure}),
    }


def mean_of_moved(column: Sequence[float], records: Sequence[EditRecord]) -> float:
    """Mean over the edits that took a step; an edit that held from the start has 0 in `column`.

    The paper's means keep those edits in.
    """
    return sum(column) / max(1, sum(record["num_steps"] > 0 for record in records))
