"""The files of a patch, and what `patch.json` must hold beside what its fingerprint covers."""

from __future__ import annotations

from typing import Any

from editable_hf.data.json_fields import COUNT, NAMES, NUMBER, NUMBERS, OBJECT, TEXT, TEXTS, TRUTH, Expected

PATCH_NAME = "patch.json"
PAYLOAD_NAME = "patch.safetensors"
CARD_NAME = "README.md"


def _is_editor(value: Any) -> bool:
    return isinstance(value, dict) and TEXT.holds(value.get("name")) and NUMBERS.holds(value.get("hyperparameters"))


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and len(value) > 0 and all(map(_is_tensor, value.values()))


def _is_tensor(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"dtype", "shape", "before", "after"}
        and isinstance(value["shape"], list)
        and all(map(COUNT.holds, value["shape"]))
        and all(TEXT.holds(value[name]) for name in ("dtype", "before", "after"))
    )


AGAIN = "download or save the patch again"
PATCH_FIELDS = {
    "format": COUNT,
    "fingerprint": TEXT,
    "tensors": Expected("`dtype`, `shape`, `before` and `after` by name of a parameter", _are_tensors),
    "encoding": TEXT,
    "model_class": TEXT,
    "base_model": TEXT.or_none(),
    "layers": NAMES,
    "inputs": TEXTS,
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
