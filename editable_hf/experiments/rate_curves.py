"""Drawdown against success over the editor's learning rate, so that networks are compared where edits succeed alike.

A network whose edits need larger steps looks more local at a learning rate that is too small for it. What counts is
the drawdown at equal success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editable_hf.experiments.plots import COLORS, import_pyplot, save_figure

# Of each learning rate that was tried: `learning_rate`, `drawdown` and `success_rate`, fractions.
Curve = Sequence[Mapping[str, float]]


def curves_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """The curve of each row for which more than one learning rate was tried, by the row's name."""
    return {row["name"]: row["tried"] for row in rows if len(row.get("tried", ())) > 1}


def drawdown_at(curve: Curve, success_rate: float) -> float | None:
    """The drawdown where enough edits begin to succeed, interpolated between two learning rates.

    Args:
        curve: By increasing learning rate.
        success_rate: A fraction.

    Returns:
        A fraction; `None` where too few edits succeed at every learning rate, or enough at the smallest one already:
        then the curve does not show where they begin to.
    """
    for below, above in zip(curve, curve[1:], strict=False):
        if below["success_rate"] < success_rate <= above["success_rate"]:
            share = (success_rate - below["success_rate"]) / (above["success_rate"] - below["success_rate"])
            return below["drawdown"] + share * (above["drawdown"] - below["drawdown"])
    return None


def format_curves(curves: Mapping[str, Curve], success_rate: float) -> list[str]:
    """A line for each curve with its drawdown at that success rate."""
    lines = []
    for name, curve in curves.items():
        drawdown = drawdown_at(curve, success_rate)
        found = "not among the learning rates tried" if drawdown is None else f"drawdown {drawdown:.2%}"
        lines.append(f"{name}, where {success_rate:.0%} of the validation edits succeed: {found}")
    return lines


def plot_rate_curves(curves: Mapping[str, Curve], path: Path, title: str) -> None:
    """Draws drawdown against success, one line a row, one point a learning rate.

    Args:
        curves: By name of the row.
        path: PNG file to write.
        title: Title of the picture.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for number, (name, curve) in enumerate(curves.items()):
        success, drawdown = ([100 * point[key] for point in curve] for key in ("success_rate", "drawdown"))
        color = COLORS[number % len(COLORS)]
        axes.plot(success, drawdown, color=color, marker="o", markersize=4, label=name)
        last = curve[-1]["learning_rate"]
        axes.annotate(f"{last:g}", (success[-1], drawdown[-1]), fontsize="x-small", color=color)
    axes.set(xlabel="edits that succeed (%)", ylabel="drawdown of the error rate (points)", title=title)
    axes.set_ylim(bottom=0)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, axes, path)
