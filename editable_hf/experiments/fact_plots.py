"""Pictures of many edits of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editable_hf.experiments.plots import COLORS, import_pyplot

_DRAWN = {"reliability": "edits that are said (%)", "unrelated": "unrelated answers kept (%)"}


def plot_many_edits(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws how many edits hold, and how many unrelated answers stay, against the number of edits.

    Args:
        rows: With `name`, `edits` (their number), `reliability` and `unrelated`, fractions.
        path: PNG file to write.
        title: Title of the picture.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, panels = pyplot.subplots(1, len(_DRAWN), figsize=(9, 4.2), layout="constrained", sharex=True)
    names = list(dict.fromkeys(row["name"] for row in rows))
    for axes, (key, label) in zip(panels, _DRAWN.items(), strict=True):
        for number, name in enumerate(names):
            own = [row for row in rows if row["name"] == name and key in row]
            counts, values = [row["edits"] for row in own], [100 * row[key] for row in own]
            line = "--" if number >= len(COLORS) else "-"
            color = COLORS[number % len(COLORS)]
            axes.plot(counts, values, line, color=color, marker="o", markersize=4, label=name)
        axes.set(xlabel="edits", ylabel=label, xscale="log", ylim=(-2, 102))
        axes.set_xticks(sorted({row["edits"] for row in rows}), minor=False)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
