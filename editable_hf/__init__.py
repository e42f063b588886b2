"""Editable Neural Networks (ICLR 2020) for Hugging Face models: train them editable, patch them, measure the patch.

The words used throughout:

- *edit*: a few gradient steps on a few layers that end when a constraint holds.
- *constraint* (`l_e`): a number that is 0 or less once the mistake is fixed, e.g. log-probability of the best
  alternative minus that of the wanted translation.
- *editor*: the rule of the gradient steps, e.g. RMSProp with a learning rate.
- *request*: one mistake to fix: an input, its target and the *alternatives* that the target must beat.
- *locality*: outputs for everything else stay as they were; *drawdown* is how much a test metric moves by an edit.
- *success*: `l_e <= 0` was reached; *verified*: the edited model, decoding freely, gives the target.
- *Editable Training*: training with two terms more (Eq. 2), so that edits succeed in few steps and stay local.
- *patch*: an edit as a small file that can be applied, reviewed, stacked, taken back and shared.
"""

# ruff: noqa: E402
from editable_hf.versions import warn_if_untested

warn_if_untested()  # before the imports that a newer transformers may break

from importlib import import_module
from typing import Any

from editable_hf.version import __version__

# Imported when they are first used: torch, transformers and datasets take seconds.
_MODULES = {
    "editable_hf.core": (
        *("ClassConstraint", "ContinuationConstraint", "EditResult", "EditStack", "JointConstraint"),
        *("LearnableEditor", "SequenceConstraint"),
        *("adam", "edit", "edited", "gd", "momentum", "rmsprop", "rprop", "scaled_gd", "select_parameters"),
    ),
    "editable_hf.data.image_requests": ("ImageEditRequests", "make_image_requests"),
    "editable_hf.data.images": ("load_image_data",),
    "editable_hf.data.languages": ("set_languages",),
    "editable_hf.data.requests": ("make_edit_requests", "read_edit_requests", "request_constraint"),
    "editable_hf.data.translation": ("load_translation_data",),
    "editable_hf.training.arguments": (
        *("EditableCausalLMTrainingArguments", "EditableImageTrainingArguments", "EditableSeq2SeqTrainingArguments"),
    ),
    "editable_hf.training.causal": ("EditableCausalLMTrainer",),
    "editable_hf.training.editor_config": ("EditorConfig",),
    "editable_hf.training.image": ("EditableImageTrainer",),
    "editable_hf.training.seq2seq": ("EditableSeq2SeqTrainer",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
