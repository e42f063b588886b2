"""The functional core: editors, the edit loop, constraints and losses. Imports torch and nothing else."""

from editable_hf.core.constraints import ClassConstraint, JointConstraint, SequenceConstraint
from editable_hf.core.continuations import ContinuationConstraint
from editable_hf.core.editing import AnyEditor, EditFunction, EditResult, EditStack, edit, edited
from editable_hf.core.editors import (
    EDITORS,
    Editor,
    LearnableEditor,
    adam,
    apply_updates,
    gd,
    momentum,
    rmsprop,
    rprop,
    scaled_gd,
)
from editable_hf.core.functional import FunctionalModel
from editable_hf.core.losses import distillation_loss, edit_loss, locality_loss, objective, token_locality_loss
from editable_hf.core.selection import select_parameters

__all__ = [
    "EDITORS",
    "AnyEditor",
    "ClassConstraint",
    "ContinuationConstraint",
    "EditFunction",
    "EditResult",
    "EditStack",
    "Editor",
    "FunctionalModel",
    "JointConstraint",
    "LearnableEditor",
    "SequenceConstraint",
    "adam",
    "apply_updates",
    "distillation_loss",
    "edit",
    "edit_loss",
    "edited",
    "gd",
    "locality_loss",
    "momentum",
    "objective",
    "rmsprop",
    "rprop",
    "scaled_gd",
    "select_parameters",
    "token_locality_loss",
]
