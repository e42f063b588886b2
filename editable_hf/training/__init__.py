"""Trainers for Editable Training."""

from editable_hf.training.arguments import EditableArguments, EditableSeq2SeqTrainingArguments
from editable_hf.training.editor_config import EditorConfig
from editable_hf.training.seq2seq import EditableSeq2SeqTrainer

__all__ = ["EditableArguments", "EditableSeq2SeqTrainer", "EditableSeq2SeqTrainingArguments", "EditorConfig"]
