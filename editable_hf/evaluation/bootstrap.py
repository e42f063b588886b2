"""Bootstrap intervals over edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate with the ends of its 95% percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], num_samples: int = 2_000, seed: int = 0) -> Interval:
    """Mean of `values` (one for each edit) with its interval; deterministic.

    Raises:
        ValueError: If there is no value.
    """
    if len(values) == 0:
        raise ValueError("There is no value to average; evaluate at least one edit.")
    array = np.asarray(values, dtype=float)
    rows = np.random.default_rng(seed).integers(len(array), size=(num_samples, len(array)))
    means = array[rows].mean(1)
    return Interval(float(array.mean()), *np.percentile(means, [2.5, 97.5]).tolist())


def mean_row(name: str, columns: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """A row of a table: the mean of each column (one value for each edit), and its interval under `intervals`."""
    found = {key: bootstrap_mean(values) for key, values in columns.items()}
    return {
        "name": name,
        **{key: interval.mean for key, interval in found.items()},
        "num_edits": len(next(iter(columns.values()))),
        "intervals": {key: [interval.low, interval.high] for key, interval in found.items()},
    }
