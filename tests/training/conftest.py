from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest
from datasets import Dataset
from tiny_images import image_rows
from transformers import TrainingArguments

from editable_hf import (
    EditableImageTrainer,
    EditableImageTrainingArguments,
    EditableSeq2SeqTrainer,
    EditableSeq2SeqTrainingArguments,
)


class RecordList(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record):
        self.messages.append(f"{record.name}: {record.getMessage()}")


@pytest.fixture
def transformers_log():
    """Context manager that lists what transformers logs as a warning or worse, which does not propagate to caplog."""

    @contextmanager
    def listen():
        handler, logger = RecordList(), logging.getLogger("transformers")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        try:
            yield handler.messages
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)

    return listen


USUAL = {
    "max_steps": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def training_arguments(folder, **overrides) -> EditableSeq2SeqTrainingArguments:
    own = {"per_device_train_batch_size": 4, "edit_learning_rate": 1e-2, "edit_max_steps": 3}
    return EditableSeq2SeqTrainingArguments(str(folder), **{**USUAL, **own, **overrides})


@pytest.fixture
def requests_data(sentence_pairs, tokenizer):
    """Three requests whose targets the model does not give: sentence i shall become the translation of i + 1."""
    sources, targets = sentence_pairs
    rows = []
    for i in range(3):
        ids = tokenizer(text_target=targets[i : i + 5])["input_ids"]
        rows.append(
            {
                "id": i,
                "source": sources[i],
                "target": targets[i + 1],
                "input_ids": tokenizer(sources[i])["input_ids"],
                "labels": ids[1],
                "alternatives": [ids[0], *ids[2:]],
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(tmp_path, tokenizer, encoded_pairs, requests_data):
    """Builds a trainer; options are training arguments, except those that name parts of it."""
    default = object()

    def build(model, *, folder=None, train_dataset=None, edit_dataset=default, callbacks=None, parts=None, **options):
        return EditableSeq2SeqTrainer(
            model,
            training_arguments(folder or tmp_path / "run", **options),
            train_dataset=encoded_pairs.select(range(12)) if train_dataset is None else train_dataset,
            edit_dataset=requests_data if edit_dataset is default else edit_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            **(parts or {}),
        )

    return build


IMAGE_OPTIONS = {
    **USUAL,
    "per_device_train_batch_size": 6,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
}
EDITING = {"edit_learning_rate": 1e-4, "edit_max_steps": 3, "edit_coef": 0.5, "locality_coef": 1.0}


@pytest.fixture
def plain_arguments(tmp_path):
    """Arguments of the stock `Trainer` that match those of `make_image_trainer`."""
    usual = {**IMAGE_OPTIONS, "remove_unused_columns": False}
    return lambda **options: TrainingArguments(str(tmp_path / "plain"), **{**usual, **options})


@pytest.fixture
def make_image_trainer(tmp_path):
    """Builds a trainer of images; options are training arguments, except those that name parts of it."""

    def build(model, *, folder=None, train_dataset=None, edit_dataset=None, callbacks=None, parts=None, **options):
        trainer = EditableImageTrainer(
            model,
            EditableImageTrainingArguments(str(folder or tmp_path / "run"), **{**IMAGE_OPTIONS, **EDITING, **options}),
            train_dataset=image_rows(12) if train_dataset is None else train_dataset,
            edit_dataset=edit_dataset,
            callbacks=callbacks,
            **(parts or {}),
        )
        trainer.model.editor.to(model.dtype)
        return trainer

    return build
