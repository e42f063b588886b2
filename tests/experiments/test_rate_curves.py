from __future__ import annotations

import pytest

from editable_hf.experiments.plots import plot_rate_curves
from editable_hf.experiments.report import curves_of, drawdown_at, format_curves

CURVE = [
    {"learning_rate": rate, "drawdown": drawdown, "success_rate": success}
    for rate, drawdown, success in ((1e-4, 0.01, 0.5), (2e-4, 0.02, 0.9), (4e-4, 0.04, 1.0), (8e-4, 0.02, 0.98))
]


def test_drawdown_where_enough_edits_succeed():
    assert drawdown_at(CURVE, 0.95) == pytest.approx(0.03)  # half way between the second and the third
    assert drawdown_at(CURVE, 0.9) == pytest.approx(0.02)
    assert drawdown_at(CURVE, 0.5) is None  # enough at the smallest learning rate: where it begins is not known
    assert drawdown_at(CURVE[:2], 0.95) is None


def test_rows_with_several_learning_rates_have_a_curve(tmp_path):
    rows = [{"name": "plain"}, {"name": "one", "tried": CURVE[:1]}, {"name": "curve", "tried": CURVE}]
    curves = curves_of(rows)
    assert curves == {"curve": CURVE}
    assert format_curves(curves, 0.95) == ["curve, where 95% of the validation edits succeed: drawdown 3.00%"]
    assert format_curves(curves, 0.4)[0].endswith("not among the learning rates tried")
    plot_rate_curves(curves, tmp_path / "curves.png", "curves")
    assert (tmp_path / "curves.png").stat().st_size > 5_000
