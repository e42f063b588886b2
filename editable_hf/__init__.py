"""Editable Neural Networks (ICLR 2020) for Hugging Face models: train them editable, patch them, measure the patch."""

# ruff: noqa: E402
from editable_hf.versions import warn_if_untested

warn_if_untested()  # before the imports that a newer transformers may break

from editable_hf.core import (
    ClassConstraint,
    EditResult,
    EditStack,
    JointConstraint,
    LearnableEditor,
    SequenceConstraint,
    adam,
    edit,
    edited,
    gd,
    momentum,
    rmsprop,
    rprop,
    scaled_gd,
    select_parameters,
)
from editable_hf.data.image_requests import ImageEditRequests, make_image_requests
from editable_hf.data.images import load_image_data
from editable_hf.data.requests import make_edit_requests, read_edit_requests, request_constraint
from editable_hf.data.translation import load_translation_data
from editable_hf.training import (
    EditableImageTrainer,
    EditableImageTrainingArguments,
    EditableSeq2SeqTrainer,
    EditableSeq2SeqTrainingArguments,
    EditorConfig,
)
from editable_hf.version import __version__

__all__ = [
    "ClassConstraint",
    "EditResult",
    "EditStack",
    "EditableImageTrainer",
    "EditableImageTrainingArguments",
    "EditableSeq2SeqTrainer",
    "EditableSeq2SeqTrainingArguments",
    "EditorConfig",
    "ImageEditRequests",
    "JointConstraint",
    "LearnableEditor",
    "SequenceConstraint",
    "__version__",
    "adam",
    "edit",
    "edited",
    "gd",
    "load_image_data",
    "load_translation_data",
    "make_edit_requests",
    "make_image_requests",
    "momentum",
    "read_edit_requests",
    "request_constraint",
    "rmsprop",
    "rprop",
    "scaled_gd",
    "select_parameters",
]
