"""Trainers for Editable Training."""

from editable_hf.training.arguments import (
    EditableArguments,
    EditableImageTrainingArguments,
    EditableSeq2SeqTrainingArguments,
)
from editable_hf.training.editor_config import EditorConfig
from editable_hf.training.image import EditableImageTrainer
from editable_hf.training.seq2seq import EditableSeq2SeqTrainer

__all__ = [
    "EditableArguments",
    "EditableImageTrainer",
    "EditableImageTrainingArguments",
    "EditableSeq2SeqTrainer",
    "EditableSeq2SeqTrainingArguments",
    "EditorConfig",
]
