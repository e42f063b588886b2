"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Okabe and Ito's palette: distinguishable with any color vision.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plots_available() -> bool:
    """Whether the `plots` extra is installed."""
    return find_spec("matplotlib") is not None


def import_pyplot():
    if not plots_available():
        raise ImportError('Pictures need matplotlib: pip install "editable_hf[plots]".')
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw_drawdown_scale(axes) -> None:
    """A few edits do most of the harm: linear up to one point, logarithmic above, so that both can be read."""
    from matplotlib.ticker import NullLocator

    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_yticks([tick for tick in (0, 0.5, 1, 2, 5, 10, 20, 50) if tick <= max(1, axes.get_ylim()[1])])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def save_figure(figure, axes, path: Path) -> None:
    """Writes a figure with one pair of axes as PNG, without the frame's upper and right side, and closes it."""
    from matplotlib import pyplot

    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_drawdowns(drawdowns: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Draws the BLEU drawdown of every edit, sorted, one line a model, with each model's mean.

    Args:
        drawdowns: Absolute BLEU differences of the edits by name of the model, BLEU points.
        path: PNG file to write.
        title: Title of the picture, e.g. the name of the test set.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for (name, values), color in zip(drawdowns.items(), COLORS, strict=False):
        mean = sum(values) / len(values)
        ranks = [100 * (rank + 0.5) / len(values) for rank in range(len(values))]
        axes.plot(ranks, sorted(values), color=color, linewidth=2, label=f"{name}, mean {mean:.2f}")
        axes.axhline(mean, color=color, linewidth=1, linestyle=":")
    axes.set(xlabel="edits, least to most harmful (%)", ylabel="BLEU drawdown (points)", title=title, xlim=(0, 100))
    draw_drawdown_scale(axes)
    axes.legend(frameon=False)
    save_figure(figure, axes, path)


def plot_beside_paper(rows: Sequence[Mapping[str, Any]], key: str, path: Path, label: str, scale: float = 1) -> None:
    """Draws one number of each row with its interval, and the paper's number for the row where it has one.

    Args:
        rows: With `name`, `key`, `intervals` and, from the paper, `paper_KEY`.
        key: What is drawn.
        path: PNG file to write.
        label: Of the axis.
        scale: What the numbers are multiplied by, e.g. 100 for percentages.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 0.9 + 0.3 * len(rows)), layout="constrained")
    places = range(len(rows), 0, -1)
    means = [scale * row[key] for row in rows]
    below = [scale * (row[key] - row["intervals"][key][0]) for row in rows]
    above = [scale * (row["intervals"][key][1] - row[key]) for row in rows]
    axes.errorbar(means, places, xerr=[below, above], fmt="o", color=COLORS[1], capsize=3, label="ours")
    pairs = zip([row.get(f"paper_{key}") for row in rows], places, strict=True)
    theirs = [(scale * value, place) for value, place in pairs if value is not None]
    if theirs:
        axes.plot(*zip(*theirs, strict=True), "D", color=COLORS[0], markerfacecolor="none", label="paper")
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set_ylim(0.4, len(rows) + 0.6)  # with few rows the default cuts the outermost marks
    axes.set_xlabel(label)
    axes.set_xlim(left=0)
    axes.grid(axis="x", linewidth=0.4, alpha=0.5)
    figure.legend(frameon=False, loc="outside upper right", ncols=2)
    save_figure(figure, axes, path)
