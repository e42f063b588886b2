"""Results as a table in the terminal and as JSON."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from editable_hf.version import __version__

# Table 6 of the paper, IWSLT14 De-En.
TABLE_6 = [
    {
        "name": "paper: baseline, alpha=1e-3",
        "bleu": 34.77,
        "bleu_drawdown": 0.76,
        "success_rate": 1.0,
        "num_steps": 2.35,
    },
    {
        "name": "paper: editable, c_loc=100, alpha=1e-3",
        "bleu": 34.80,
        "bleu_drawdown": 0.35,
        "success_rate": 1.0,
        "num_steps": 3.07,
    },
    {
        "name": "paper: editable, c_loc=100, alpha=3e-4",
        "bleu": 34.81,
        "bleu_drawdown": 0.17,
        "success_rate": 1.0,
        "num_steps": 5.5,
    },
]

_COLUMNS = {
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


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A plain-text table of result rows; a value that a row does not have is left empty.

    Args:
        rows: As returned by [`BleuDrawdownEvaluator.summarize`], or `TABLE_6`.
    """
    lines = [[title for title, _ in _COLUMNS.values()]]
    for row in rows:
        values = {**row, "bleu_drawdown_interval": row.get("intervals", {}).get("bleu_drawdown")}
        lines.append(
            ["" if values.get(key) is None else form.format(values[key]) for key, (_, form) in _COLUMNS.items()]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) if first == 0 else cell.rjust(width) for first, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(line, widths, strict=True)) for line in lines)
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, git commit, machine and threads."""
    packages = ("torch", "transformers", "accelerate", "datasets", "sacrebleu", "sentencepiece", "sacremoses")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": {
            "editable_hf": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
        "commit": _git_commit(),
        "machine": {"device": device, "threads": torch.get_num_threads()},
    }


def _git_commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` with uncommitted changes; `None` outside a checkout."""
    folder = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def write_results(path: Path, rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], seed: int, **extra: Any):
    """Writes `results.json`: the rows, and all that is needed to get them again (to a temporary name first)."""
    content = {"rows": list(rows), "config": config, "seed": seed, **environment(), **extra}
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    temporary.replace(path)
