"""The model card of a patch."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub import ModelCardData

import editable_hf.models

if TYPE_CHECKING:  # patches write their own card
    from editable_hf.patches.patch import Patch

_TAGS = ["editable", "editable-patch"]


def patch_card(patch: Patch, repo_id: str | None = None) -> str:
    """`README.md` of a patch, with the hub's front matter.

    Args:
        patch: What it is about.
        repo_id: Where it will be, for the example; a placeholder stands there for a local folder.
    """
    data = ModelCardData(base_model=patch.base_model, library_name="editable_hf", tags=_TAGS)
    template = files("editable_hf.patches").joinpath("templates/patch_card.md").read_text(encoding="utf-8")
    return Template(template).substitute(
        metadata=data.to_yaml(),
        base=f"`{patch.base_model}`" if patch.base_model else "a model without a hub id",
        base_argument=json.dumps(patch.base_model or "folder of the model"),
        patch_argument=json.dumps(repo_id or "folder or hub id of this patch"),
        model_class=patch.model_class,
        import_model=_import_of(patch.model_class),
        dtype=next(iter(patch.tensors.values())).dtype,
        num_tensors=len(patch.tensors),
        num_parameters=f"{patch.num_parameters:,}",
        size=f"{len(patch.payload) / 1e6:.2f} MB",
        request=_fenced(patch.request),
        facts="\n".join(f"| {name} | {_cell(value)} |" for name, value in _facts(patch).items()),
        metrics=_metrics(patch.metrics),
        fingerprint=patch.fingerprint,
        parent=f"`{patch.parent}`" if patch.parent else "none: made on the unpatched model",
        base_fingerprint=patch.base_fingerprint,
        edited_fingerprint=patch.edited_fingerprint,
    )


def _import_of(model_class: str) -> str:
    """An Auto class could give the model under other parameter names (`AutoModel`: without its head)."""
    for package in (transformers, editable_hf.models):
        if model_class in dir(package):
            return f"from {package.__name__} import {model_class}"
    return f"# import {model_class} from where it is defined"


def _facts(patch: Patch) -> dict[str, str]:
    values = ", ".join(f"{name} {value:g}" for name, value in patch.editor["hyperparameters"].items())
    facts = {
        "constraint holds (`l_e` at most 0)": "yes" if patch.success else "**no**",
        "decoding gives the target": {True: "yes", False: "**no**", None: "not checked"}[patch.verified],
        "`l_e` before, after": f"{_number(patch.l_e_before)}, {_number(patch.l_e_after)}",
        "gradient steps": str(patch.num_steps),
        "editor": f"{patch.editor['name']} ({values})",
        "layers": ", ".join(patch.layers),
        "encoding": patch.encoding,
    }
    if patch.rounding is not None:
        facts["lost by rounding"] = (
            f"{patch.rounding['relative_error']:.2%} of the edit, at most {patch.rounding['max_abs_error']:.1e} a "
            "weight; all that was measured was measured before rounding"
        )
    versions = (f"{name} {patch.versions[name]}" for name in ("editable_hf", "torch", "transformers"))
    return {**facts, "made with": ", ".join(versions)}


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _metrics(metrics: dict[str, Any]) -> str:
    return _fenced(metrics) if metrics else "Nothing was measured besides the constraint."


def _fenced(value: Any) -> str:
    """JSON in a code block that no backtick in it can end."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}json\n{text}\n{fence}"
