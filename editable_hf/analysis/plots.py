"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

# Okabe and Ito's palette: distinguishable with any colour vision.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def plots_available() -> bool:
    """Whether the `plots` extra is installed."""
    return find_spec("matplotlib") is not None


def plot_drawdowns(drawdowns: Mapping[str, Sequence[float]], path: Path, title: str) -> None:
    """Draws the BLEU drawdown of every edit, sorted, one line a model, with each model's mean.

    Args:
        drawdowns: Absolute BLEU differences of the edits by name of the model, BLEU points.
        path: PNG file to write.
        title: Title of the picture, e.g. the name of the test set.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    if not plots_available():
        raise ImportError('Pictures need matplotlib: pip install "editable_hf[plots]".')
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for (name, values), colour in zip(drawdowns.items(), _COLOURS, strict=False):
        mean = sum(values) / len(values)
        ranks = [100 * (rank + 0.5) / len(values) for rank in range(len(values))]
        axes.plot(ranks, sorted(values), color=colour, linewidth=2, label=f"{name}, mean {mean:.2f}")
        axes.axhline(mean, color=colour, linewidth=1, linestyle=":")
    axes.set(xlabel="edits, least to most harmful (%)", ylabel="BLEU drawdown (points)", title=title, xlim=(0, 100))
    # A few edits do most of the harm: linear up to one point, logarithmic above, so that both can be read.
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(FixedLocator([0, 0.5, 1, 2, 5, 10, 20, 50]))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
