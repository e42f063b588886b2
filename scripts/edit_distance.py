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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.functional import eval_mode
from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.bootstrap import bootstrap_mean
from editable_hf.evaluation.records import read_records
from editable_hf.experiments.plots import COLORS, import_pyplot, plots_available, save_figure
from editable_hf.experiments.report import format_table, write_results

COLUMNS = {
    "name": ("", "{}"),
    "nearest": ("nearest", "{:.0%}"),
    "similarity": ("cosine", "{:.3f}"),
    "changed": ("changed", "{:.2%}"),
    "interval": ("95% interval", "{0[0]:.2%}-{0[1]:.2%}"),
    "num_edits": ("edits", "{}"),
}


def embed_sources(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    batch_size: int = 64,
    progress: str | None = "sources",
) -> Tensor:
    """What the model's encoder makes of each sentence: mean of its last hidden states, of length 1.

    Args:
        model: An encoder-decoder model; edits of its decoder leave these vectors as they are.
        tokenizer: Its tokenizer.
        sources: Sentences in the form that the model takes.
        batch_size: Sentences that are encoded together.
        progress: Title of the progress bar, none if `None`.

    Returns:
        `(num_sentences, hidden)`, float32, on the CPU.
    """
    encoder, vectors = model.get_encoder(), []
    for start in tqdm(range(0, len(sources), batch_size), desc=progress, disable=progress is None, unit="batch"):
        batch = list(sources[start : start + batch_size])
        inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        with eval_mode(model), torch.no_grad():
            states = encoder(**inputs.to(model.device)).last_hidden_state.float()  # (batch, length, hidden)
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors.append(F.normalize((states * mask).sum(1), dim=1).cpu())
    return torch.cat(vectors)


def changed_by_distance(similarities: Tensor, changed: Tensor, num_bins: int = 10) -> list[dict[str, Any]]:
    """How many translations edits change, from the sentences nearest to the edited one to the farthest.

    Args:
        similarities: Of each edited sentence to each test sentence, `(num_edits, num_sentences)`. NaN leaves a
            sentence out (the edited one itself).
        changed: Whether the edit changed the sentence's translation, same shape.
        num_bins: Parts of equal size that the test sentences are divided into, for each edit anew.

    Returns:
        For each part, nearest first: `nearest`, the share of sentences that are as near or nearer; `similarity`, the
        mean; `changed`, the mean share of changed translations, with its 95% bootstrap `interval` over the edits.

    Raises:
        ValueError: For fewer sentences than parts.
    """
    fewest = int((~similarities.isnan()).sum(1).min())
    if fewest < num_bins:
        raise ValueError(f"{fewest} sentences cannot be divided into {num_bins} parts; ask for fewer.")
    shares: list[list[float]] = [[] for _ in range(num_bins)]
    means: list[list[float]] = [[] for _ in range(num_bins)]
    for row, touched in zip(similarities, changed.double(), strict=True):
        others = (~row.isnan()).nonzero().squeeze(1)
        order = others[row[others].argsort(descending=True, stable=True)]
        for number, part in enumerate(order.tensor_split(num_bins)):
            shares[number].append(touched[part].mean().item())
            means[number].append(row[part].double().mean().item())
    rows = []
    for number, (share, mean) in enumerate(zip(shares, means, strict=True), start=1):
        interval = bootstrap_mean(share)
        rows.append(
            {
                "nearest": number / num_bins,
                "similarity": sum(mean) / len(mean),
                "changed": interval.mean,
                "interval": [interval.low, interval.high],
            }
        )
    return rows


def changes_of(records: Sequence[Mapping[str, Any]], num_sentences: int) -> Tensor:
    """Whether each edit changed each translation, `(num_edits, num_sentences)`, from the records of an evaluator."""
    changed = torch.zeros(len(records), num_sentences, dtype=torch.bool)
    for row, record in zip(changed, records, strict=True):
        row[[each["index"] for each in record["changed"]]] = True
    return changed


def plot_curves(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path, title: str) -> None:
    """Draws the share of translations that edits change by distance to the edited sentence, one line a model.

    Args:
        curves: Rows of `changed_by_distance` by name of the model.
        path: PNG file to write.
        title: Title of the picture.

    Raises:
        ImportError: Without matplotlib, naming the extra.
    """
    pyplot = import_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for number, (name, rows) in enumerate(curves.items()):
        color, line = COLORS[number % len(COLORS)], ("-", "--", ":")[number % 3]
        places = [100 * row["nearest"] for row in rows]
        axes.plot(places, [100 * row["changed"] for row in rows], color=color, linestyle=line, marker="o", label=name)
        low, high = ([100 * row["interval"][end] for row in rows] for end in (0, 1))
        axes.fill_between(places, low, high, color=color, alpha=0.2, linewidth=0)
    axes.set(xlabel="test sentences, nearest to the edited one to farthest (%)", ylabel="translations changed (%)")
    axes.set_title(title)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save_figure(figure, axes, path)


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
        plot_curves(curves, folder / "distance.png", "What edits touch, by distance")
    print(f"\n{format_table(rows, COLUMNS)}\n\nResults: {folder}/distance.json, distance.parquet, distance.png")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", required=True, help="folders that bleu_drawdown.py has filled")
    parser.add_argument("--num_bins", type=int, default=10, help="parts that the test sentences are divided into")
    parser.add_argument("--output_dir", default="runs/edit_distance", help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
