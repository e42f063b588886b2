"""Pictures of results, as PNG files. Without matplotlib all raise an `ImportError` that names the extra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from editable_hf.versions import require_extra

if TYPE_CHECKING:  # it imports what measures edits of images
    from editable_hf.experiments.edit_space import EditSpace

# Okabe and Ito's palette: distinguishable with any color vision.
COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")

# Ten classes that differ in lightness or in the marker where a color vision deficiency makes hues alike.
_CLASS_COLORS = (*COLORS, "#000000", "#7F7F7F", "#8C510A", "#5E3C99")
_MARKERS = "osv^DPX<>*"


def plots_available() -> bool:
    """Whether the `plots` extra is installed."""
    return find_spec("matplotlib") is not None


def import_pyplot():
    require_extra("matplotlib", "plots")
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


def plot_drawdowns(drawdowns: Mapping[str, Sequence[float]], path: Path, title: str, metric: str) -> None:
    """Draws the drawdown of every edit, sorted, one line a row of the table, with each row's mean.

    Args:
        drawdowns: Absolute differences of the metric by name of the row, points (of BLEU, or percentage points).
        path: PNG file to write.
        title: Title of the picture, e.g. the name of the test set.
        metric: "BLEU" or "error rate".
    """
    pyplot = import_pyplot()
    lines_of_legend = (len(drawdowns) + 1) // 2
    figure, axes = pyplot.subplots(figsize=(7, 3.4 + 0.2 * lines_of_legend), layout="constrained")
    for number, (name, values) in enumerate(drawdowns.items()):
        ranks = [100 * (rank + 0.5) / len(values) for rank in range(len(values))]
        # More rows than colors: the second round is dashed.
        line = "--" if number >= len(COLORS) else "-"
        label = f"{name}, mean {sum(values) / len(values):.2f}"
        axes.plot(
            ranks, sorted(values), color=COLORS[number % len(COLORS)], linestyle=line, linewidth=1.6, label=label
        )
    axes.set(xlabel="edits, least to most harmful (%)", ylabel=f"drawdown of the {metric} (points)")
    axes.set(title=title, xlim=(0, 100))
    draw_drawdown_scale(axes)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, axes, path)


def plot_ranks(counts: Tensor, path: Path, title: str) -> None:
    """Draws how often the wanted class has each rank among a network's predictions (Table 5, upper right).

    Args:
        counts: Examples by 0-based rank, `(num_classes,)`.
        path: PNG file to write.
        title: Title of the picture.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    width = -(-len(counts) // 50)  # as many bars at most
    shares = [100 * float(part.sum() / counts.sum()) for part in counts.split(width)]
    starts = [width * number for number in range(len(shares))]
    axes.bar(starts, shares, width=0.9 * width, align="edge", color=COLORS[1])
    labeled = starts[:: max(1, len(starts) // 10)]
    axes.set_xticks([start + 0.45 * width for start in labeled], labeled)
    axes.set(xlabel="rank of the wanted class (0: predicted)", ylabel="examples (%)", title=title)
    save_figure(figure, axes, path)


def plot_sequences(error_rates: Mapping[str, Tensor], path: Path, title: str) -> None:
    """Draws the error rate after each edit of a sequence: the mean over runs in a pale band of one standard deviation.

    Args:
        error_rates: After 0, 1, ..., n edits by name of the row, fractions, `(num_runs, 1 + num_edits)`.
        path: PNG file to write.
        title: Title of the picture.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for number, (name, rates) in enumerate(error_rates.items()):
        mean, deviation = 100 * rates.mean(0), 100 * rates.std(0, correction=min(1, len(rates) - 1))
        steps, color = range(rates.shape[1]), COLORS[number % len(COLORS)]
        axes.plot(steps, mean, color=color, linewidth=2, label=f"{name} ({len(rates)} runs)")
        axes.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel="edits in a row", ylabel="test error (%)", title=title, xlim=(0, rates.shape[1] - 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
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


def plot_rate_curves(curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path, title: str) -> None:
    """Draws drawdown against success, one line a row, one point a learning rate.

    Args:
        curves: Points by name of the row, see [`curves_of`].
        path: PNG file to write.
        title: Title of the picture.
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


def plot_drawdown_by_class(drawdowns: Mapping[str, Tensor], classes: Sequence[str], path: Path) -> None:
    """Draws which classes an edit of an image of each class hurts (Figure 2, left), one panel a model, one scale.

    Args:
        drawdowns: `(num_classes, num_classes)` of `drawdown_by_class` by name of the model.
        classes: Their names.
        path: PNG file to write.
    """
    pyplot = import_pyplot()
    figure, panels = pyplot.subplots(
        1, len(drawdowns), figsize=(1.2 + 3.6 * len(drawdowns), 5.0), layout="constrained", squeeze=False, sharey=True
    )
    highest = max(float(100 * values.nan_to_num(0).max()) for values in drawdowns.values())
    for axes, (name, values) in zip(panels[0], drawdowns.items(), strict=True):
        # Cividis reads the same with and without color vision deficiency.
        image = axes.imshow(100 * values.numpy(), cmap="cividis", vmin=0, vmax=highest)
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
        axes.set(title=name, xlabel="class of the test images")
    panels[0, 0].set_ylabel("class of the edited image")
    figure.colorbar(image, ax=panels[0].tolist(), label="drawdown (points)", shrink=0.75)
    figure.savefig(path, dpi=150, bbox_inches="tight")  # the panels are square: room is left above them
    pyplot.close(figure)


def plot_edit_space(spaces: Mapping[str, tuple[Tensor, EditSpace]], classes: Sequence[str], path: Path) -> None:
    """Draws each edit as a point (Figure 2, middle): color and marker for the image's class, paler for later targets.

    Args:
        spaces: Points `(num_edits, 2)` of `embed_edits` and the edits, by name of the model.
        classes: Names of the classes.
        path: PNG file to write.
    """
    pyplot = import_pyplot()
    from matplotlib.colors import to_rgb

    figure, panels = pyplot.subplots(
        1, len(spaces), figsize=(4.2 * len(spaces), 5.0), layout="constrained", squeeze=False
    )
    for axes, (name, (points, space)) in zip(panels[0], spaces.items(), strict=True):
        for index, label in enumerate(classes):
            own = space.labels == index
            paleness = [0.6 * target / max(1, len(classes) - 1) for target in space.targets[own].tolist()]
            rgb = to_rgb(_CLASS_COLORS[index % len(_CLASS_COLORS)])
            colors = [[part + (1 - part) * pale for part in rgb] for pale in paleness]
            marker = _MARKERS[index % len(_MARKERS)]
            axes.scatter(*points[own].T.numpy(), c=colors or None, s=14, marker=marker, linewidths=0)
            if axes is panels[0, 0]:  # one entry for each class, in its full color
                axes.scatter([], [], color=[rgb], marker=marker, s=30, label=label)
        axes.set(title=f"{name}, {len(points)} edits", xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
    title = "class of the edited image; the paler, the later the wanted class in this list"
    figure.legend(loc="outside lower center", ncols=min(5, len(classes)), frameon=False, title=title)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def plot_explained_variance(curves: Mapping[str, Tensor], path: Path) -> None:
    """Draws the share of variance that the first components explain (Figure 2, right), one line a model.

    Args:
        curves: `(num_components,)` of `explained_variance` by name of the model, fractions.
        path: PNG file to write.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for number, (name, values) in enumerate(curves.items()):
        style = {"color": COLORS[number % len(COLORS)], "linestyle": ("-", "--", ":")[number % 3]}
        axes.plot(range(1, len(values) + 1), 100 * values.numpy(), linewidth=2, label=name, **style)
    axes.set(xlabel="components of the truncated SVD", ylabel="explained variance (%)", ylim=(0, 100))
    axes.set_xlim(1, max(map(len, curves.values())))
    axes.legend(frameon=False, loc="lower right")
    save_figure(figure, axes, path)
