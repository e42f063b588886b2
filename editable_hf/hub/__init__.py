"""Edits as small files: patches to save, apply, take back, stack and share."""

from editable_hf.hub.model_card import patch_card
from editable_hf.hub.patch_record import applied_patches
from editable_hf.hub.patch_stack import apply_patches, revert_patches
from editable_hf.hub.patches import Patch

__all__ = ["Patch", "applied_patches", "apply_patches", "patch_card", "revert_patches"]
