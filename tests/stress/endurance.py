"""Thousands of edits in one process: do memory, file handles, temporary files and the time of an edit stay the same?

    python tests/stress/endurance.py --task image
    python tests/stress/endurance.py --task translation --num_edits 5000 --json endurance.json

Tiny models with random weights. Each edit is made, applied and taken back; every tenth becomes a patch, which is
applied and reverted; every hundredth time some are measured over a test set. The second tenth of the edits is compared
with the last one. Exits with 1 where memory grew by more than 1%, an edit takes 10% more seconds of the processor
(which do not count what else the machine does), or anything was left open or lying around.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from tqdm.auto import tqdm
from transformers import MarianMTModel, PreTrainedModel

from editable_hf import ClassConstraint, EditorConfig, edit, edited, make_edit_requests, request_constraint
from editable_hf.core.constraints import Constraint
from editable_hf.data.tokenizer import train_tokenizer
from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.bleu_evaluator import BleuDrawdownEvaluator
from editable_hf.evaluation.edit_evaluator import EditEvaluator
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.experiments.timing import finish
from editable_hf.models import CifarResNetConfig, CifarResNetForImageClassification, iwslt_transformer_config
from editable_hf.patches import Patch, apply_patches, revert_patches

BARS = {"seconds": 1.10, "memory": 1.01, "handles": 1.0, "temporary_files": 1.0}  # last tenth / second tenth
NUM_REQUESTS = 40


class Subject(NamedTuple):
    """What is edited: the model, its requests with their constraints, and an evaluator over a small test set."""

    model: PreTrainedModel
    requests: list[Mapping[str, Any]]
    constraint: Callable[[Mapping[str, Any]], Constraint]
    evaluator: EditEvaluator
    config: EditorConfig


def images() -> Subject:
    model = CifarResNetForImageClassification(CifarResNetConfig(depth=8, num_labels=10)).eval()
    rows = [{"pixel_values": torch.randn(3, 32, 32), "labels": index % 10} for index in range(NUM_REQUESTS)]
    requests = [
        {"id": index, "image_index": index, "label": index % 10, "target": (3 * index + 1) % 10}
        for index in range(NUM_REQUESTS)
    ]

    def constraint(request: Mapping[str, Any]) -> ClassConstraint:
        return ClassConstraint({"pixel_values": rows[request["image_index"]]["pixel_values"][None]}, request["target"])

    evaluator = ErrorDrawdownEvaluator(model, rows, layers="chain3", batch_size=20)
    return Subject(model, requests, constraint, evaluator, EditorConfig(layers=["chain3"]))


def translation() -> Subject:
    splits = load_translation_data(
        "embedded", max_train_samples=500, max_validation_samples=20, max_test_samples=NUM_REQUESTS
    ).splits
    texts = [*splits["train"]["source"], *splits["train"]["target"]]
    tokenizer = train_tokenizer(texts, vocab_size=400, max_length=64)
    model = MarianMTModel(iwslt_transformer_config(tokenizer, "tiny", max_length=64)).eval()
    test = splits["test"]
    options = {"targets": test["target"], "num_alternatives": 4, "progress": None}
    requests = list(make_edit_requests(model, tokenizer, test["source"], **options))
    few = test[:4]
    evaluator = BleuDrawdownEvaluator(
        model, tokenizer, few["source"], few["target"], few["target_text"], num_beams=2, batch_size=4
    )
    return Subject(model, requests, partial(request_constraint, model=model), evaluator, EditorConfig())


def work(subject: Subject, number: int) -> float:
    """One edit and what belongs to it; the seconds that the processor spent on the edit."""
    model, config = subject.model, subject.config
    request, editor = subject.requests[number % len(subject.requests)], config.build_editor()
    constraint = subject.constraint(request)
    start = time.process_time()
    result = edit(model, constraint, editor, config.layers, max_steps=3)
    seconds = time.process_time() - start
    with edited(model, result):
        pass
    if number % 10 == 0 and result.num_steps > 0:
        patch = Patch.from_edit(model, result, request={"id": request["id"]}, editor=config, layers=config.layers)
        apply_patches(model, patch)
        revert_patches(model)
    if number % 100 == 0:
        subject.evaluator.evaluate(subject.requests[:3], editor, max_steps=3, progress=None)
    return seconds


def observe(process: psutil.Process, folder: Path) -> tuple[int, int, int]:
    handles = process.num_handles() if psutil.WINDOWS else process.num_fds()
    return process.memory_info().rss, handles, len(list(folder.rglob("*")))


def run(subject: Subject, num_edits: int, folder: Path) -> dict[str, list[float]]:
    """What was seen after each edit, by the keys of `BARS`."""
    process = psutil.Process()
    seen = torch.zeros(len(BARS), num_edits, dtype=torch.float64)  # its memory is there from the start
    for number in tqdm(range(num_edits), desc="edits", unit="edit"):
        seconds = work(subject, number)
        if number % 10 == 0:
            gc.collect()
        seen[:, number] = torch.tensor([seconds, *observe(process, folder)], dtype=torch.float64)
    return dict(zip(BARS, seen.tolist(), strict=True))


def compare(seen: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Medians over the second and the last tenth of the edits, and their ratio."""
    rows = {}
    for key, values in seen.items():
        tenth = max(1, len(values) // 10)
        first, last = statistics.median(values[tenth : 2 * tenth]), statistics.median(values[-tenth:])
        rows[key] = {"first": first, "last": last, "ratio": last / first if first else 1.0 + last}
    return rows


def main(args: argparse.Namespace) -> int:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            subject = {"image": images, "translation": translation}[args.task]()
            before = {name: value.clone() for name, value in subject.model.state_dict().items()}
            rows = compare(run(subject, args.num_edits, Path(folder)))
        finally:
            tempfile.tempdir = None
    unchanged = all(map(torch.equal, before.values(), subject.model.state_dict().values()))
    print(
        f"\n{args.num_edits:,} edits, {args.task}; the weights afterwards are {'the same' if unchanged else 'OTHERS'}"
    )
    for key, row in rows.items():
        verdict = "ok" if row["ratio"] <= BARS[key] else f"above {BARS[key]:.2f}"
        print(f"{key:<16} {row['first']:14.6g} -> {row['last']:14.6g}   ratio {row['ratio']:.4f}  {verdict}")
    results = {"config": vars(args), "seed": 0, "rows": rows}
    finish({**results, "unchanged": unchanged}, {key: row["ratio"] for key, row in rows.items()}, args.json)
    return 0 if unchanged and all(row["ratio"] <= BARS[key] for key, row in rows.items()) else 1


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["image", "translation"], default="image", help="what kind of model")
    parser.add_argument("--num_edits", type=int, default=5000, help="edits in a row, 20 at least")
    parser.add_argument("--json", help="file for all figures")
    args = parser.parse_args()
    if args.num_edits < 20:
        parser.error(f"--num_edits must be 20 or more, because tenths of them are compared; got {args.num_edits}")
    return args


if __name__ == "__main__":
    raise SystemExit(main(parse_args()))
