"""Writes results/README.md and its pictures from results/*.json: `make results`.

Every table stands beside the paper's numbers, and every file names its command, data, seed, commit and machine.
`collect_result.py` takes the results of a run into the folder. What the numbers say is in results/claims.md, which is
written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from editable_hf.data.atomic import write_atomically
from editable_hf.experiments.plots import plot_beside_paper
from editable_hf.experiments.report import format_markdown_table, format_ratios
from editable_hf.experiments.results_tables import SECTIONS, Row, Section

_HEAD = """# Results

Written by `make results` from the JSON files beside this page; each holds the rows, the configuration, the seed, the
versions, the commit and the machine of one run. Drawdown is the mean absolute change of the test metric by one edit;
intervals are 95% bootstrap intervals over edits, and say nothing about another training run or other test
sentences. Hyperparameters and models are chosen on validation data and validation edits.
"""


def combined(contents: Sequence[Mapping[str, Any]], key: str = "rows") -> list[dict[str, Any]]:
    """The rows of runs that differ in their seed alone: means, with the lowest and highest run as the interval."""
    if len(contents) == 1:
        return [dict(row) for row in contents[0][key]]
    rows = []
    for name in [row["name"] for row in contents[0][key]]:
        runs = [next(row for row in content[key] if row["name"] == name) for content in contents]
        numbers = [key for key, value in runs[0].items() if isinstance(value, int | float)]
        row = {key: statistics.mean(run[key] for run in runs) for key in numbers}
        measured = runs[0].get("intervals", {})
        ends = {key: [min(run[key] for run in runs), max(run[key] for run in runs)] for key in measured}
        sizes = {key: sum(run[key] for run in runs) for key in numbers if key in ("num_edits", "num_runs")}
        rows.append({**runs[0], **row, **sizes, "intervals": ends})
    return rows


def with_paper(rows: Sequence[Row], section: Section) -> list[dict[str, Any]]:
    """The rows with the paper's numbers as `paper_KEY`; those of the same name are told apart by their layers."""
    names, found = [row["name"] for row in rows], []
    if len(set(names)) < len(names):
        names = [f"{row['name']}, {row['layers']}" for row in rows]
    for name, row in zip(names, rows, strict=True):
        paper = section.paper.get(name, {})
        theirs = {f"paper_{key}": paper[key] for key in section.shown if paper.get(key) is not None}
        found.append({**row, "name": name, **theirs})
    return found


def source_line(content: Mapping[str, Any]) -> str:
    machine = content["machine"]
    versions = f"torch {content['versions']['torch']}, transformers {content['versions']['transformers']}"
    return (
        f"- `{content['command']}`: seed {content['seed']}, commit {content['commit']}, {machine['device']} with "
        f"{machine['threads']} threads, {versions}. {content.get('note', '')}".rstrip()
    )


def columns_of(section: Section, num_runs: int) -> dict[str, tuple[str, str]]:
    columns = dict(section.columns)
    if num_runs > 1:
        intervals = [key for key in columns if key.endswith("_interval")]
        columns |= {key: ("lowest-highest run", columns[key][1]) for key in intervals}
    theirs = {key: columns[key] for key in section.shown}
    return columns | {f"paper_{key}": (f"paper: {title}", form) for key, (title, form) in theirs.items()}


def section_text(section: Section, folder: Path) -> str:
    """Markdown of a part of the page; its pictures are written into the folder."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob(f"{section.prefix}*.json")):
        name = re.sub(r"-seed\d+$", "", path.stem)
        groups.setdefault(name, []).append(json.loads(path.read_text(encoding="utf-8")))
    parts = [f"## {section.title}", section.text]
    for name, contents in groups.items():
        rows = with_paper(combined(contents), section)
        columns = columns_of(section, len(contents))
        about = contents[0].get("test_name")
        runs = "" if len(contents) == 1 else f" Means of {len(contents)} runs."
        parts += [f"**{about}.**{runs}"] if about else []
        parts.append(format_markdown_table(rows, columns))
        if "chosen" in contents[0]:
            parts.append(f"On validation edits the choice is: {', '.join(content['chosen'] for content in contents)}.")
        if section.drawn is not None:
            key, label, scale = section.drawn
            plot_beside_paper(rows, key, folder / f"{name}.png", label, scale)
            parts.append(f"![{section.title}, {about or name}]({name}.png)")
        ratios = [(line, content["seed"]) for content in contents for line in format_ratios(content["rows"])]
        parts.append("\n".join(f"- {line}, seed {seed}" for line, seed in ratios))
        for key, heading, more_columns, paper in section.more:
            parts += [f"{heading}:", format_markdown_table([*paper, *combined(contents, key)], more_columns)]
        parts += [f"![{path.stem}]({path.name})" for path in sorted(folder.glob(f"{name}-*.png"))]
        parts.append("\n".join(map(source_line, contents)))
    return "\n\n".join(filter(None, parts)) if groups else ""


def write_page(folder: Path) -> None:
    claims = (folder / "claims.md").read_text(encoding="utf-8").strip()
    parts = [_HEAD.strip(), claims, *filter(None, (section_text(section, folder) for section in SECTIONS))]
    write_atomically(folder / "README.md", "\n\n".join(parts) + "\n")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default="results", help="with the JSON files and claims.md")
    return parser.parse_args()


if __name__ == "__main__":
    write_page(Path(parse_args().folder))
