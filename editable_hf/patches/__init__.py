"""Edits as small files: patches to save, apply, take back, stack and share."""

from editable_hf.patches.card import patch_card
from editable_hf.patches.patch import Patch
from editable_hf.patches.record import applied_patches
from editable_hf.patches.stack import apply_patches, revert_patches

__all__ = ["Patch", "applied_patches", "apply_patches", "patch_card", "revert_patches"]
