from __future__ import annotations

import numpy as np
import pytest

from editable_hf.evaluation.bootstrap import bootstrap_mean, bootstrap_ratio


def test_ratio_of_a_constant_multiple_has_no_width():
    below = np.random.default_rng(0).random(50) + 0.1
    ratio = bootstrap_ratio(0.4 * below, below)
    assert ratio == pytest.approx((0.4, 0.4, 0.4), abs=1e-12)


def test_ratio_interval_covers_the_truth_about_95_times_in_100():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        above, below = rng.exponential(1.0, 80), rng.exponential(2.0, 80)
        _, low, high = bootstrap_ratio(above, below, num_samples=400)
        covered += low <= 0.5 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_mean_interval_shrinks_with_more_edits():
    values = np.random.default_rng(2).random(400)
    few, many = bootstrap_mean(values[:25]), bootstrap_mean(values)
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_ratio_refuses_what_has_no_ratio():
    with pytest.raises(ValueError, match="as many numerators as denominators"):
        bootstrap_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="positive mean below"):
        bootstrap_ratio([1.0], [0.0])
    with pytest.raises(ValueError, match="no value"):
        bootstrap_ratio([], [])
