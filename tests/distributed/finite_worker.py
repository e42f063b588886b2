"""Trains a tiny image classifier where some numbers of one process are not finite; each process saves what it got.

An update has one batch and one request for each process. A set-up is named after what is broken. The last one ends
the launch.

    PYTHONPATH=tests torchrun --nproc_per_node 2 tests/distributed/finite_worker.py FOLDER
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from tiny_images import image_requests, image_rows, tiny_resnet

from editable_hf import EditableImageTrainer, EditableImageTrainingArguments
from editable_hf.launch import launched_processes

BATCH_SIZE = 4
# The broken batches of the six of three updates (the process is that number modulo 2), and the process with a broken
# request.
SETUPS = {
    "batch_raises": ([3], None),
    "edit_raises": ([], 1),
}


def build_rows(broken):
    rows = image_rows(6 * BATCH_SIZE)
    for number in broken:
        rows[number * BATCH_SIZE]["pixel_values"][0, 0, 0] = math.nan
    return rows


def run(name, folder, rank):
    broken, broken_edit = SETUPS[name]
    rows, request = build_rows(broken), {"id": 70 + rank, **image_requests()[rank]}
    if broken_edit == rank:
        request["pixel_values"] = request["pixel_values"] * math.nan
    args = EditableImageTrainingArguments(
        str(folder / "run"),
        per_device_train_batch_size=BATCH_SIZE,
        train_sampling_strategy="sequential",
        max_steps=len(rows) // (2 * BATCH_SIZE),
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        learn_edit_learning_rate=True,
        edit_max_steps=3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        freeze_batch_norm=True,  # a broken batch would spoil the statistics, and with them the edit of its process
    )
    model, failure = tiny_resnet(), None
    trainer = EditableImageTrainer(model, args, train_dataset=rows, edit_dataset=[request])
    model.editor.double()
    try:
        trainer.train()
    except FloatingPointError as error:
        failure = error
    content = {
        "parameters": {key: value.detach().clone() for key, value in model.named_parameters()},
        "buffers": {key: value.clone() for key, value in model.named_buffers()},
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
        "message": None if failure is None else str(failure),
    }
    torch.save(content, folder / f"{name}-{rank}.pt")
    if name == "edit_raises" and failure is not None:
        raise failure  # the other process waits for this one's gradient


if __name__ == "__main__":
    torch.set_num_threads(1)
    for setup in SETUPS:
        run(setup, Path(sys.argv[1]), launched_processes().process_index)
