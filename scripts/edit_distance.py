"""Which sentences an edit of a translation model touches, by their distance to the edited one.

    python scripts/bleu_drawdown.py --model runs/demo/baseline --output_dir runs/drawdown-baseline
    python scripts/bleu_drawdown.py --model runs/demo/editable --output_dir runs/drawdown-editable
    python scripts/edit_distance.py --runs runs/drawdown-baseline runs/drawdown-editable

Takes folders that bleu_drawdown.py has filled. For every edit the test sentences are sorted by how near they are to
the edited one (cosine of the mean encoder states of the unedited model) and divided into parts of equal size. Prints
the share of changed translations in each part, and writes distance.json, distance.parquet and distance.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.edits import read_records
from editable_hf.experiments.plots import plot_changed_by_distance, plots_available
from editable_hf.experiments.report import format_table, write_results
from editable_hf.experiments.sentence_distance import changed_by_distance, changes_of, embed_sources

COLUMNS = {
    "name": ("", "{}"),
    "nearest": ("nearest", "{:.0%}"),
    "similarity": ("cosine", "{:.3f}"),
    "changed": ("changed", "{:.2%}"),
    "interval": ("95% interval", "{0[0]:.2%}-{0[1]:.2%}"),
    "num_edits": ("edits", "{}"),
}


def measure(run: Path, num_bins: int) -> list[dict[str, Any]]:
    """The rows of one finished run."""
    missing = [name for name in ("settings.json", "edits.jsonl", "results.json") if not (run / name).is_file()]
    if missing:
        raise SystemExit(f"{run} lacks {', '.join(missing)}: give folders of finished runs of bleu_drawdown.py.")
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForSeq2SeqLM.from_pretrained(settings["model"]).to(device)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    languages = {key: settings[key] for key in ("source_lang", "target_lang", "raw_text")}
    data = load_translation_data(settings["data"], **languages)
    sources = data.splits["test"].shuffle(seed=settings["seed"])[: settings["num_sentences"]]["source"]
    # Edits that held from the start changed nothing and say nothing about distance.
    records = [record for record in read_records(run / "edits.jsonl") if record["num_steps"] > 0]
    if not records:
        raise SystemExit(f"No edit in {run} took a step; there is nothing to show.")
    tests = embed_sources(model, tokenizer, sources)
    edited_sources = [record["source"] for record in records]
    similarities = embed_sources(model, tokenizer, edited_sources, progress="edited sources") @ tests.T
    for row, edited in zip(similarities, edited_sources, strict=True):
        row[[source == edited for source in sources]] = torch.nan
    changed = changes_of(records, len(sources))
    rows = changed_by_distance(similarities, changed, num_bins)
    return [{"name": run.name, **row, "num_edits": len(records)} for row in rows]


def main(args: argparse.Namespace) -> None:
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if len({Path(run).name for run in args.runs}) < len(args.runs):
        raise SystemExit(f"The runs are told apart by the names of their folders, but got {', '.join(args.runs)}.")
    curves = {run.name: measure(run, args.num_bins) for run in map(Path, args.runs)}
    rows = [row for curve in curves.values() for row in curve]
    Dataset.from_list(rows).to_parquet(folder / "distance.parquet")
    write_results(folder / "distance.json", rows, vars(args), seed=0)  # of the bootstrap
    if plots_available():
        plot_changed_by_distance(curves, folder / "distance.png", "What edits touch, by distance")
    print(f"\n{format_table(rows, COLUMNS)}\n\nResults: {folder}/distance.json, distance.parquet, distance.png")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, help="folders that bleu_drawdown.py has filled")
    parser.add_argument("--num_bins", type=int, default=10, help="parts that the test sentences are divided into")
    parser.add_argument("--output_dir", default="runs/edit_distance", help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
