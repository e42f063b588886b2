"""What `patch.json` must hold beside what its fingerprint covers."""

from __future__ import annotations

from typing import Any

from editable_hf.data.json_fields import COUNT, NAMES, NUMBER, NUMBERS, OBJECT, TEXT, TRUTH, Expected


def _is_editor(value: Any) -> bool:
    return isinstance(value, dict) and TEXT.holds(value.get("name")) and NUMBERS.holds(value.get("hyperparameters"))


AGAIN = "download or save the patch again"
PATCH_FIELDS = {
    "tensors": OBJECT,
    "encoding": TEXT,
    "model_class": TEXT,
    "base_model": TEXT.or_none(),
    "layers": NAMES,
    "editor": Expected("an object with `name` and `hyperparameters`", _is_editor),
    "num_steps": COUNT,
    "l_e_before": NUMBER.or_none(),
    "l_e_after": NUMBER.or_none(),
    "success": TRUTH,
    "verified": TRUTH.or_none(),
    "metrics": OBJECT,
    "parent": TEXT.or_none(),
    "rounding": NUMBERS.or_none(),
    "versions": OBJECT,
}
