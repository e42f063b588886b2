from __future__ import annotations

import numpy as np
import pytest

from editable_hf.evaluation.bootstrap import bootstrap_mean


def test_interval_covers_the_truth_about_95_times_in_100():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        _, low, high = bootstrap_mean(rng.exponential(1.0, 80), num_samples=400)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_mean_interval_shrinks_with_more_edits():
    values = np.random.default_rng(2).random(400)
    few, many = bootstrap_mean(values[:25]), bootstrap_mean(values)
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="no value"):
        bootstrap_mean([])
