"""Bootstrap intervals over edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    array = _column(values)
    means = array[_resample(len(array), num_samples, seed)].mean(1)
    return Interval(float(array.mean()), *np.percentile(means, [2.5, 97.5]).tolist())


def bootstrap_ratio(
    numerators: Sequence[float], denominators: Sequence[float], num_samples: int = 2_000, seed: int = 0
) -> Interval:
    """Ratio of two means over the same edits, resampled together; deterministic.

    Args:
        numerators: One value for each edit, e.g. the drawdown of the editable model.
        denominators: The other model's value for the same edits.

    Raises:
        ValueError: If there is no value, the lengths differ or the denominators' mean is not positive.
    """
    above, below = _column(numerators), _column(denominators)
    if len(above) != len(below) or below.mean() <= 0:
        raise ValueError(
            f"A ratio needs as many numerators as denominators and a positive mean below, got {len(above)} and "
            f"{len(below)} values with mean {below.mean():.3g} below."
        )
    rows = _resample(len(above), num_samples, seed)
    means_below = below[rows].mean(1)
    ratios = above[rows].mean(1)[means_below > 0] / means_below[means_below > 0]
    return Interval(float(above.mean() / below.mean()), *np.percentile(ratios, [2.5, 97.5]).tolist())


def _column(values: Sequence[float]) -> np.ndarray:
    if len(values) == 0:
        raise ValueError("There is no value to average; evaluate at least one edit.")
    return np.asarray(values, dtype=float)


def _resample(size: int, num_samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(size, size=(num_samples, size))
