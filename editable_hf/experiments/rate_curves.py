"""Drawdown against success over the editor's learning rate, so that networks are compared where edits succeed alike.

A network whose edits need larger steps looks more local at a learning rate that is too small for it. What counts is
the drawdown at equal success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
