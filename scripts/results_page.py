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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editable_hf.data.atomic import write_atomically
from editable_hf.experiments.fix_methods import IMAGE_COLUMNS, SENTENCE_COLUMNS
from editable_hf.experiments.paper_tables import GENERALIZATION, TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_6
from editable_hf.experiments.plots import plot_beside_paper
from editable_hf.experiments.report import (
    BLEU_COLUMNS,
    ERROR_COLUMNS,
    FACT_COLUMNS,
    GENERALIZATION_COLUMNS,
    MANY_FACTS_COLUMNS,
    MANY_TERMS_COLUMNS,
    SEQUENCE_COLUMNS,
    TERM_COLUMNS,
    format_markdown_table,
    format_ratios,
)

Row = Mapping[str, Any]
Columns = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Same.
        prefix: How the names of its files begin. Files that differ in `-seedN` alone are one table.
        text: What the reader must know first.
        columns: Of the table.
        paper: The paper's row for each of ours, by name or by `name, layers`.
        shown: Which of its numbers stand beside ours.
        drawn: Key and label of what is drawn, and what it is multiplied by; nothing if not given.
        more: Further tables of the same files: key, heading, columns, and rows of the paper.
    """

    title: str
    prefix: str
    text: str
    columns: Columns
    paper: Mapping[str, Row] = field(default_factory=dict)
    shown: Sequence[str] = ()
    drawn: tuple[str, str, float] | None = None
    more: Sequence[tuple[str, str, Columns, Sequence[Row]]] = ()


def _chosen(columns: Mapping[str, tuple[str, str]], *keys: str) -> Columns:
    return {key: columns[key] for key in keys}


_SECONDS = {"edit_seconds": ("seconds", "{:.2f}")}
_BLEU = {
    **_chosen(BLEU_COLUMNS, "name", "bleu", "bleu_detok", "bleu_drawdown", "bleu_drawdown_interval"),
    **_chosen(BLEU_COLUMNS, "bleu_drawdown_signed", "success_rate", "verified_rate", "num_steps", "outputs_changed"),
    **_SECONDS,
    **_chosen(BLEU_COLUMNS, "num_edits", "num_sentences"),
}
_ERROR = {
    **_chosen(ERROR_COLUMNS, "name", "layers", "error_rate", "drawdown", "drawdown_interval"),
    **_chosen(ERROR_COLUMNS, "success_rate", "num_steps", "already_satisfied"),
    **_SECONDS,
    **_chosen(ERROR_COLUMNS, "num_edits", "num_images"),
}
_FIGURE_2 = {
    "name": ("", "{}"),
    "num_edits": ("edits", "{}"),
    "own_class_ratio": ("drawdown of the own class / of others", "{:.2f}"),
    "components_50": ("components for 50% of the variance", "{}"),
    "components_90": ("for 90%", "{}"),
}

_ORDER_OF_TABLE_3 = [
    "published, GD all",
    "published, chain3",
    "editable, GD all",
    "editable, GD chain3",
    "editable c_loc=0.03, chain3",
    "editable, chain3",
    "editable+CNP, chain3",
    "published, GD+EWC chain3",
    "published, RMSProp+EWC chain3",
    "DkNN k=10",
    "DkNN k=100",
]
_ORDER_OF_TABLE_4 = ["published, extra", "control, extra", "editable, extra"]
_ORDER_OF_TABLE_6 = ["baseline", "editable", "editable, alpha=0.0003"]
_LAYERS = {f"{name}, {part}": {"drawdown": value} for name, row in TABLE_2.items() for part, value in row.items()}
_EDITORS = {f"{row['name'].removeprefix('paper: ')}, chain3": row for row in TABLE_1}

_OURS = "Ours: the published ResNet-20 (0.27 M parameters, three chains, 8.27% error) in place of ResNet-18 (11 M)."

SECTIONS = [
    Section(
        "Table 6: translation",
        "table_6",
        "The paper: IWSLT14 De-En, 160,239 training pairs, fairseq's model, 1,000 edits, 6,750 sentences. Ours: the "
        "recipe's `small` model (7 M parameters). All models continue the same pretrained one for equally many "
        "updates. `editable` has the paper's weights of the terms: 100 for a sum over a batch, 0.03 for a mean over "
        "its tokens. `editable-local` has more locality, c_loc = 0.3 on IWSLT14 and 1 on Multi30k. "
        "The embedded corpus is the demo's: easy sentences, 1.9 M parameters, c_edit = 0.1 and c_loc = 1.",
        _BLEU,
        dict(zip(_ORDER_OF_TABLE_6, TABLE_6, strict=True)),
        ("bleu", "bleu_drawdown", "success_rate", "num_steps"),
        ("bleu_drawdown", "BLEU drawdown of an edit (points)", 1),
    ),
    Section(
        "Tables 1 and 2: editors and layers",
        "tables_1_2",
        f"{_OURS} No network here was trained to be editable; each editor is tuned on validation images. For editors "
        "other than GD and RMSProp the paper gives the best layers only, without saying which.",
        _ERROR,
        {**_EDITORS, **_LAYERS},
        ("drawdown",),
        ("drawdown", "drawdown of the error rate (points)", 100),
    ),
    Section(
        "Tables 3 and 4: Editable Training and what it is compared with",
        "table_3",
        f"{_OURS} Editable networks and controls continue it for equally many updates. The rows of the extra layer "
        "are Table 4's roles; the paper's numbers there are ResNet-18's on ImageNet.",
        _ERROR,
        {
            **dict(zip(_ORDER_OF_TABLE_3, TABLE_3, strict=True)),
            **dict(zip(_ORDER_OF_TABLE_4, (TABLE_4["resnet18"][number] for number in (1, 2, 4)), strict=True)),
        },
        ("drawdown", "success_rate"),
        ("drawdown", "drawdown of the error rate (points)", 100),
    ),
    Section(
        "Table 5: edits that a user would make",
        "table_5",
        f"{_OURS} In place of ImageNet-A: what that network gets wrong among 30,000 training images, given its true "
        "class. The paper shows its rows as a picture. Training requests are random classes, classes drawn by their "
        'rank ("match ranks"), or further examples of the same kind.',
        _ERROR,
        drawn=("drawdown", "drawdown of the error rate (points)", 100),
        more=(
            (
                "generalization",
                "Five augmentations of an example are edited at once; the share of its most similar test image's "
                "augmentations that have the edited class, before and after",
                GENERALIZATION_COLUMNS,
                GENERALIZATION,
            ),
            ("sequences", "Edits in a row, each from the weights that the one before left", SEQUENCE_COLUMNS, ()),
        ),
    ),
    Section(
        "Figure 2: what edits do inside",
        "figure_2",
        "Edits of test images to random classes, those that took a step. The paper describes 4,500.",
        _FIGURE_2,
    ),
    Section(
        "Facts of a language model",
        "facts",
        "Not in the paper. Each row edits the same facts to another object of the same kind; docs/facts.md explains "
        "the columns. Learning rates are chosen on validation edits.",
        dict(FACT_COLUMNS),
        drawn=("kl", "KL on text (nats a token)", 1),
        more=(
            ("at_once", "Several edits at once", dict(MANY_FACTS_COLUMNS), ()),
            (
                "in_a_row",
                "Edits in a row, each of what the one before left; said and kept after the last of them",
                dict(MANY_FACTS_COLUMNS),
                (),
            ),
        ),
    ),
    Section(
        "Terms of a glossary",
        "terms",
        "Not in the paper. Each row makes a model use other nouns; docs/terms.md explains the columns. Rates are "
        "chosen on validation terms.",
        dict(TERM_COLUMNS),
        drawn=("unseen_right", "term right in unseen sentences (%)", 100),
        more=(("at_once", "25 of the terms by one edit", dict(MANY_TERMS_COLUMNS), ()),),
    ),
    Section(
        "What else one could do about a wrong translation",
        "fixes-translation",
        "Corrections to another wording, on the embedded corpus. Paraphrases are other German wordings of the same "
        "sentence and neighbors sentences of the same template: both should follow. Unrelated sentences should stay. "
        "Edits and fine-tuning go on until decoding gives the wanted sentence, or 100 steps.",
        SENTENCE_COLUMNS,
        drawn=("bleu_drawdown", "BLEU drawdown of a correction (points)", 1),
    ),
    Section(
        "What else one could do about a wrong class",
        "fixes-images",
        "Test images of CIFAR-10 that the published network gets wrong, corrected to their true class. Augmented: "
        "crops and mirror images of the same image. Drawdown is measured on other test images. Edits and fine-tuning "
        "go on until the class is predicted, or 100 steps.",
        IMAGE_COLUMNS,
        drawn=("drawdown", "drawdown of the error rate (points)", 100),
    ),
]

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
