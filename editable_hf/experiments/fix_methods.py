"""What compare_fixes.py and compare_image_fixes.py share, the rule for learning rates and the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedModel

from editable_hf.core.editors import Params
from editable_hf.experiments.report import BLEU_COLUMNS, ERROR_COLUMNS, format_table, write_results
from editable_hf.experiments.stages import Stages

MIN_HOLDS = 0.9  # share of validation corrections that must hold for a learning rate to be chosen
_FIRST_COLUMNS = {"name": ("", "{}"), "learning_rate": ("alpha", "{:g}"), "holds": ("holds", "{:.1%}")}
_LAST_COLUMNS = {"fix_seconds": ("seconds", "{:.2f}"), "num_edits": ("fixes", "{}")}
SENTENCE_COLUMNS = {
    **_FIRST_COLUMNS,
    "paraphrases": ("paraphrases follow", "{:.1%}"),
    "neighbors": ("neighbors follow", "{:.1%}"),
    "unrelated": ("unrelated stay", "{:.1%}"),
    "bleu_drawdown": ("BLEU drawdown", "{:.3f}"),
    "bleu_drawdown_interval": BLEU_COLUMNS["bleu_drawdown_interval"],
    **_LAST_COLUMNS,
}
IMAGE_COLUMNS = {
    **_FIRST_COLUMNS,
    "already_right": ("0 steps", "{:.1%}"),
    "augmented_before": ("augmented before", "{:.1%}"),
    "augmented": ("augmented follow", "{:.1%}"),
    **{key: ERROR_COLUMNS[key] for key in ("drawdown", "drawdown_interval")},
    "outputs_changed": ("changed", "{:.2%}"),
    "cpu_seconds": ("of CPU", "{:.2f}"),
    **_LAST_COLUMNS,
}

Request = dict[str, Any]
Fix = Callable[[Request, float], Params]


class Method(NamedTuple):
    """A way to correct a model.

    Attributes:
        name: For the table.
        model: The model that it starts from.
        fix: `fix(request, learning_rate)` gives the corrected parameters by name; none for the lookup table.
        learning_rates: What is tried.
        num_fixes: Corrections at most, for a method that takes long.
    """

    name: str
    model: PreTrainedModel
    fix: Fix
    learning_rates: Sequence[float]
    num_fixes: int


def best_rate(tried: Iterable[Mapping[str, Any]], drawdown: str = "drawdown") -> float:
    """The rate with the smallest drawdown among those with which enough corrections hold, or with which most do."""
    best = min(tried, key=lambda row: (max(0.0, MIN_HOLDS - row["holds"]), row[drawdown]))
    return best["learning_rate"]


def compare(
    output_dir: str,
    methods: Iterable[tuple[Method, Callable[[Path], None]]],
    settings: Mapping[str, Any],
    columns: Mapping[str, tuple[str, str]],
    **extra: Any,
) -> None:
    """Fills a stage for every method, in which it leaves `row.json`; writes and prints the table of all."""
    stages, rows = Stages(output_dir), []
    for method, fill in methods:
        inputs = {**settings, "learning_rates": method.learning_rates}
        name = method.name.replace(", ", "-").replace(" ", "_")
        stage = stages.run(name, inputs, [], fill)
        rows.append(json.loads((stage.folder / "row.json").read_text(encoding="utf-8")))
        write_results(stages.output_dir / "results.json", rows, settings, settings["seed"], **extra)
    print(f"\n{format_table(rows, columns)}\n\nResults: {output_dir}/results.json")
