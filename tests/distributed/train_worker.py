"""Trains a tiny model for two steps under each of several set-ups and saves what every process saw.

An update has six micro-batches: accumulated by one process, or shared by two or three; all must do the same.

    PYTHONPATH=tests python tests/distributed/train_worker.py FOLDER
    PYTHONPATH=tests torchrun --nproc_per_node 3 tests/distributed/train_worker.py FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from gradient_recorder import GradientRecorder
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import EditableSeq2SeqTrainer, EditableSeq2SeqTrainingArguments, edit, request_constraint, rmsprop
from editable_hf.launch import launched_processes
from editable_hf.training.request_order import draw_requests

MICRO_BATCHES, NUM_ROWS = 6, 24
SETUPS = {
    "sentences": {"per_device_train_batch_size": 2},
    # The last batch of the epoch has one row; accelerate would complete it with rows from the beginning.
    "uneven": {"per_device_train_batch_size": 2, "accelerator_config": {"even_batches": False}},
    "tokens": {"max_tokens_per_batch": 15},
    "distillation": {"per_device_train_batch_size": 2, "base_loss": "distillation"},
    "autocast": {"per_device_train_batch_size": 2, "bf16": True},
    "loaded": {"per_device_train_batch_size": 2},  # by `from_pretrained`
    "plain": {"per_device_train_batch_size": 2},
}


class Tokenizer:
    """What the collator needs of one."""

    padding_side = "right"

    def pad(self, features, return_tensors=None, **kwargs):
        longest = max(len(row["input_ids"]) for row in features)
        batch = {}
        for key, filler in (("input_ids", 1), ("attention_mask", 0), ("labels", -100)):
            width = longest if key != "labels" else max(len(row["labels"]) for row in features)
            batch[key] = torch.tensor([[*row[key], *[filler] * (width - len(row[key]))] for row in features])
        return batch


class Collator:
    def __init__(self, model):
        self.model = model

    def __call__(self, features):
        batch = Tokenizer().pad(features)
        batch["decoder_input_ids"] = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return batch


def build_model(name, folder):
    torch.manual_seed(0)
    model = MarianMTModel(marian_config(dropout=0.0))
    if name == "loaded":
        processes = launched_processes()
        if processes.is_main_process:
            model.save_pretrained(folder / "loaded")
        processes.wait_for_everyone()
        model = MarianMTModel.from_pretrained(folder / "loaded", attn_implementation="eager")
    return model if name == "autocast" else model.double()


def build_data(count):
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number in range(count):
        lengths = 3 + number % 5, 2 + (7 * number) % 11  # uneven, the targets above all
        source, target = (torch.randint(3, 40, (length,), generator=generator).tolist() + [2] for length in lengths)
        rows.append({"input_ids": source, "attention_mask": [1] * len(source), "labels": target})
    return Dataset.from_list(rows)


def build_requests(model, seed):
    """Two requests, ordered so that the first one drawn takes several steps and the second one none."""
    rows = []
    for several in (True, False):
        row = {"input_ids": [5, 6, 7, 2], "labels": [8, 9, 10, 2], "alternatives": [[11, 12, 2]]}
        loss = edit(model, request_constraint(row, model), rmsprop(1e-3), "last_decoder_layer", 0).loss
        if (loss.item() > 0) != several:
            row |= {"labels": row["alternatives"][0], "alternatives": [row["labels"]]}
        rows.append(row)
    if draw_requests(2, 0, 2, seed) == [1, 0]:
        rows.reverse()
    return Dataset.from_list(rows)


def run(name, folder):
    model, recorder = build_model(name, folder), GradientRecorder()
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    args = EditableSeq2SeqTrainingArguments(
        str(folder / "run"),
        max_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        label_smoothing_factor=0.1,
        learn_edit_learning_rate=True,
        hyperparameter_learning_rate=0.05,
        edit_max_steps=3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        gradient_accumulation_steps=MICRO_BATCHES // world_size,
        **SETUPS[name],
    )
    trainer = EditableSeq2SeqTrainer(
        model,
        args,
        train_dataset=build_data(NUM_ROWS - (name == "uneven")),
        edit_dataset=None if name == "plain" else build_requests(model, args.seed),
        data_collator=Collator(model),
        callbacks=[recorder],
    )
    model.editor.to(model.dtype)
    steps, add = [], trainer._terms.add
    trainer._terms.add = lambda *terms: steps.append(terms[3][0].num_steps) or add(*terms)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    content = {"gradients": recorder.steps, "edit_steps": steps, "logs": logs, "state": state}
    torch.save(content, folder / f"{name}-{world_size}-{args.process_index}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for setup in SETUPS:
        run(setup, Path(sys.argv[1]))
