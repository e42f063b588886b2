"""Measures, describes and tunes edits of a tiny image classifier; each process saves what it got.

PYTHONPATH=tests python tests/distributed/evaluate_worker.py FOLDER
PYTHONPATH=tests torchrun --nproc_per_node 3 tests/distributed/evaluate_worker.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny_images import NUM_CLASSES, image_rows, tiny_resnet

from editable_hf import rmsprop
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.experiments.edit_space import describe_edits
from editable_hf.experiments.tuning import tune_editor
from editable_hf.launch import launched_processes


def main(folder: Path) -> None:
    processes = launched_processes()
    own = folder / str(processes.num_processes)
    own.mkdir(exist_ok=True)
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), image_rows(40), layers="chain3", batch_size=16)
    evaluator.group_size = 3
    requests = [
        {"id": row, "image_index": row, "label": row % NUM_CLASSES, "target": (3 * row + 1) % NUM_CLASSES}
        for row in range(11)
    ]

    def measure(editor, path=None):
        return evaluator.evaluate(requests, editor, max_steps=5, path=path, progress=None)

    # Once in two pieces: the file of the first is there.
    path = own / "edits.jsonl"
    evaluator.evaluate(requests[:4], rmsprop(1e-2), max_steps=5, path=path, progress=None)
    records = measure(rmsprop(1e-2), path)
    alone = evaluator.evaluate(requests, rmsprop(1e-2), max_steps=5, progress=None, shard=False)
    files = own / "edit_space"
    files.mkdir(exist_ok=True)
    space = describe_edits(evaluator, requests, rmsprop(1e-2), max_steps=5, folder=files, progress=None)
    tuned = tune_editor(
        lambda editor: evaluator.summarize("", measure(editor)),
        "rmsprop",
        storage=own / "studies.db",
        study_name="rmsprop",
        num_trials=8,
    )
    content = {"records": records, "alone": alone, "tuned": tuned._asdict()}
    (own / f"{processes.process_index}.json").write_text(json.dumps(content))
    torch.save(space._asdict(), own / f"{processes.process_index}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
