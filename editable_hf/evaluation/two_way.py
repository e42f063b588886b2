"""Bootstrap over edits and test examples: how far a drawdown would be off with other edits *and* another test set.

A metric of a test set (BLEU, the error rate) follows from sums of what is counted in each example. An edit changes a
few examples, so the sums of a resampled test set are those of the unedited model and a small product of matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from editable_hf.evaluation.bootstrap import Interval

NUM_SAMPLES = 1_000


class Changes(NamedTuple):
    """The examples that an edit changed.

    Attributes:
        indices: Which, `(num_changed,)`.
        deltas: Counts after the edit minus those before it, `(num_changed, num_counts)`.
    """

    indices: np.ndarray
    deltas: np.ndarray


def resampled_means(
    counts: np.ndarray,
    edits: Sequence[Changes],
    metric: Callable[[np.ndarray], np.ndarray],
    measure: Callable[[np.ndarray], np.ndarray] = np.abs,
    *,
    num_samples: int = NUM_SAMPLES,
    seed: int = 0,
) -> np.ndarray:
    """The mean over edits of what the metric lost, for resampled edits and resampled test examples.

    Deterministic, and for the same seed and sizes of the same edits and examples: two models can be compared sample by
    sample, see [`ratio_of`].

    Args:
        counts: Of each example, by the unedited model, `(num_examples, num_counts)`, whole numbers.
        edits: What each edit changed.
        metric: From sums `(num_samples, num_counts)` to values `(num_samples,)`.
        measure: Of the difference before - after; by default its absolute value.
        num_samples: How many test sets and sets of edits are drawn.
        seed: Decides which.

    Returns:
        `(num_samples,)`; the percentiles are the interval, see [`interval_of`].
    """
    rng, (num_examples, _) = np.random.default_rng(seed), counts.shape
    # How often each example is in each test set; in columns, because an edit needs the rows of few examples. Sums of
    # whole numbers below 2**24 are exact in float32.
    drawn = np.empty((num_examples, num_samples), dtype=np.float32)
    for sample in range(num_samples):
        drawn[:, sample] = np.bincount(rng.integers(num_examples, size=num_examples), minlength=num_examples)
    before = np.stack([column.astype(np.float64) @ drawn for column in counts.T], axis=1)
    values, totals = metric(before), np.zeros(num_samples)
    rows = rng.integers(len(edits), size=(num_samples, len(edits)))
    for number, (indices, deltas) in enumerate(edits):
        if len(indices):
            after = before + (deltas.T.astype(np.float32) @ drawn[indices]).T
            totals += measure(values - metric(after)) * (rows == number).sum(1)
    return totals / len(edits)


def interval_of(mean: float, samples: np.ndarray) -> Interval:
    """The 95% percentile interval of [`resampled_means`] around what was measured."""
    return Interval(mean, *np.percentile(samples, [2.5, 97.5]).tolist())


def ratio_of(mean: float, samples: np.ndarray, other_mean: float, other_samples: np.ndarray) -> Interval:
    """The ratio of two drawdowns on the same edits and test examples, with its interval.

    Raises:
        ValueError: If the other drawdown is not positive.
    """
    if other_mean <= 0:
        raise ValueError(f"A ratio needs a positive drawdown below, got {other_mean:.3g}.")
    positive = other_samples > 0
    return interval_of(mean / other_mean, samples[positive] / other_samples[positive])
