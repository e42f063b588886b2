"""Pictures of the image experiments: drawdown of each edit, ranks of the wanted classes, edits in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from editable_hf.experiments.plots import COLORS, draw_drawdown_scale, import_pyplot, save_figure


def plot_error_drawdowns(drawdowns: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Draws the drawdown of the error rate of every edit, sorted, one line a row of the table, with each row's mean.

    Args:
        drawdowns: Absolute differences of the error rate by name of the row, fractions.
        path: PNG file to write.
        title: Title of the picture, e.g. the name of the test set.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    lines_of_legend = (len(drawdowns) + 1) // 2
    figure, axes = pyplot.subplots(figsize=(7, 3.4 + 0.2 * lines_of_legend), layout="constrained")
    for number, (name, values) in enumerate(drawdowns.items()):
        points = [100 * value for value in sorted(values)]
        ranks = [100 * (rank + 0.5) / len(points) for rank in range(len(points))]
        # More rows than colors: the second round is dashed.
        line = "--" if number >= len(COLORS) else "-"
        label = f"{name}, mean {sum(points) / len(points):.2f}"
        axes.plot(ranks, points, color=COLORS[number % len(COLORS)], linestyle=line, linewidth=1.6, label=label)
    axes.set(xlabel="edits, least to most harmful (%)", ylabel="drawdown of the error rate (points)")
    axes.set(title=title, xlim=(0, 100))
    draw_drawdown_scale(axes)
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize="small")
    save_figure(figure, axes, path)


def plot_ranks(counts: Tensor, path: Path, title: str, num_bins: int = 50) -> None:
    """Draws how often the wanted class has each rank among a network's predictions (Table 5, upper right).

    Args:
        counts: Examples by 0-based rank, `(num_classes,)`.
        path: PNG file to write.
        title: Title of the picture.
        num_bins: Bars, of neighboring ranks together, at most.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    width = -(-len(counts) // num_bins)
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

    Raises:
        ImportError: Without matplotlib, naming the extra.
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
