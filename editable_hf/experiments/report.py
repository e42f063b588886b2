"""Results as a table in the terminal and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from editable_hf.data.atomic import write_atomically
from editable_hf.versions import library_versions, processor_name

# Columns of a table: title and format by key of a row. `KEY_interval` is the row's bootstrap interval of KEY.
BLEU_COLUMNS = {
    "name": ("", "{}"),
    "bleu": ("BLEU", "{:.2f}"),
    "bleu_detok": ("detok.", "{:.2f}"),
    "bleu_drawdown": ("drawdown", "{:.3f}"),
    "bleu_drawdown_interval": ("95% interval", "{0[0]:.3f}-{0[1]:.3f}"),
    "bleu_drawdown_signed": ("signed", "{:+.3f}"),
    "success_rate": ("success", "{:.1%}"),
    "verified_rate": ("verified", "{:.1%}"),
    "num_steps": ("steps", "{:.2f}"),
    "already_satisfied": ("0 steps", "{:.1%}"),
    "outputs_changed": ("changed", "{:.1%}"),
    "num_edits": ("edits", "{}"),
    "num_sentences": ("sentences", "{}"),
}
ERROR_COLUMNS = {
    "name": ("", "{}"),
    "layers": ("layers", "{}"),
    "error_rate": ("error", "{:.2%}"),
    "drawdown": ("drawdown", "{:.2%}"),
    "drawdown_interval": ("95% interval", "{0[0]:.2%}-{0[1]:.2%}"),
    "drawdown_signed": ("signed", "{:+.2%}"),
    "drawdown_moved": ("moved only", "{:.2%}"),
    "success_rate": ("success", "{:.1%}"),
    "num_steps": ("steps", "{:.2f}"),
    "already_satisfied": ("0 steps", "{:.1%}"),
    "num_edits": ("edits", "{}"),
    "num_images": ("images", "{}"),
}
SEQUENCE_COLUMNS = {
    "name": ("", "{}"),
    "before": ("error", "{:.2%}"),
    "after": ("after all edits", "{:.2%}"),
    "deviation": ("std. over runs", "{:.2%}"),
    "success_rate": ("success", "{:.1%}"),
    "retained_at_the_end": ("held at the end", "{:.1%}"),
    "edits_in_a_row": ("edits in a row", "{}"),
    "num_runs": ("runs", "{}"),
}
GENERALIZATION_COLUMNS = {
    "name": ("", "{}"),
    "before": ("before", "{:.1%}"),
    "after": ("after", "{:.1%}"),
    "after_interval": ("95% interval", "{0[0]:.1%}-{0[1]:.1%}"),
    "success": ("success", "{:.1%}"),
    "num_steps": ("steps", "{:.2f}"),
    "num_edits": ("edits", "{}"),
}
_FACT_MEASURES = {
    "reliability": ("said", "{:.1%}"),
    "forced": ("forced", "{:.1%}"),
    "generality": ("paraphrases", "{:.1%}"),
    "locality": ("neighbors kept", "{:.1%}"),
    "unrelated": ("unrelated kept", "{:.1%}"),
    "portability": ("portability", "{:.1%}"),
    "kl": ("KL", "{:.2g}"),
    "perplexity_drawdown": ("perplexity", "{:+.2%}"),
    "edit_seconds": ("seconds", "{:.3f}"),
}
FACT_COLUMNS = {
    "name": ("", "{}"),
    **_FACT_MEASURES,
    "success_rate": ("l_e <= 0", "{:.1%}"),
    "num_steps": ("steps", "{:.2f}"),
    "learning_rate": ("alpha", "{:g}"),
}
MANY_FACTS_COLUMNS = {"name": ("", "{}"), "edits": ("edits", "{}"), **_FACT_MEASURES}
TERM_COLUMNS = {
    "name": ("", "{}"),
    "edited_right": ("edited right", "{:.1%}"),
    "unseen_right": ("unseen right", "{:.1%}"),
    "unseen_right_interval": ("95% interval", "{0[0]:.1%}-{0[1]:.1%}"),
    "unseen_bleu": ("BLEU of unseen", "{:.2f}"),
    "outputs_changed": ("others changed", "{:.2%}"),
    "outputs_changed_interval": ("95% interval", "{0[0]:.2%}-{0[1]:.2%}"),
    "bleu_drawdown": ("drawdown", "{:.3f}"),
    "seconds": ("CPU seconds a term", "{:.2f}"),
    "decoding_time": ("decoding time", "{:.2f}"),
    "rate": ("rate", "{:g}"),
}
MANY_TERMS_COLUMNS = {key: column for key, column in TERM_COLUMNS.items() if not key.endswith("_interval")}

Columns = Mapping[str, tuple[str, str]]

# `learning_rate`, `drawdown` and `success_rate` (fractions) of each rate that was tried. A network whose edits need
# larger steps looks more local at a rate that is too small for it: what counts is the drawdown at equal success.
Curve = Sequence[Mapping[str, float]]


def format_table(rows: Sequence[Mapping[str, Any]], columns: Columns = BLEU_COLUMNS) -> str:
    """A plain-text table of result rows; a value that a row does not have is left empty.

    Args:
        rows: As returned by an evaluator's `summarize`, or a table of [`paper_tables`].
        columns: Title and format of each column by key, e.g. `BLEU_COLUMNS` or `ERROR_COLUMNS`.
    """
    lines = _cells(rows, columns)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) if first == 0 else cell.rjust(width) for first, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def format_markdown_table(rows: Sequence[Mapping[str, Any]], columns: Columns = BLEU_COLUMNS) -> str:
    """The same table as Markdown; cells must not hold `|`."""
    titles, *lines = (f"| {' | '.join(line)} |" for line in _cells(rows, columns))
    return "\n".join([titles, f"|---{'|---:' * (len(columns) - 1)}|", *lines])


def format_ratios(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each other row that a row's drawdown is compared with, its `drawdown_ratios`.

    Each is `{"to": "name of the other row", "mean": ..., "low": ..., "high": ...}`, see [`ratio_of`].
    """
    return [
        f"Drawdown of {row['name']} / {ratio['to']}: {ratio['mean']:.2f} "
        f"(95% interval {ratio['low']:.2f}-{ratio['high']:.2f})"
        for row in rows
        for ratio in row.get("drawdown_ratios", ())
    ]


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


def _cells(rows: Sequence[Mapping[str, Any]], columns: Columns) -> list[list[str]]:
    """The lines of a table, the titles first."""
    lines = [[title for title, _ in columns.values()]]
    for row in rows:
        values = {**row, **{f"{key}_interval": value for key, value in row.get("intervals", {}).items()}}
        lines.append(
            ["" if values.get(key) is None else form.format(values[key]) for key, (_, form) in columns.items()]
        )
    return lines


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, git commit when loaded, machine and threads."""
    return {"versions": library_versions(), "commit": COMMIT, "machine": describe_machine()}


def describe_machine() -> dict[str, Any]:
    """Device, processor, threads of this process and cores of the machine."""
    processor = processor_name()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    return {"device": device, "processor": processor, "threads": torch.get_num_threads(), "cores": os.cpu_count()}


def _git_commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` with uncommitted changes; `None` outside a checkout."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():  # where it is installed, git would find the checkout of something else, if any
        return None
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


# Read with the code that runs: by the time that results are written, the checkout may be at another commit.
COMMIT = _git_commit()


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], seed: int, **extra: Any):
    """Writes `results.json`: the rows, and all that is needed to get them again."""
    content = {"rows": list(rows), "config": config, "seed": seed, **environment(), **extra}
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")
