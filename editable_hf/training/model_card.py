"""What the model card of an editable checkpoint says beyond a plain one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from editable_hf.core.editors import EDITORS
from editable_hf.data.atomic import write_atomically
from editable_hf.training.editor_config import EditorConfig

TAG = "editable"
_HEADING, _RECIPE = "## Editing this model", "## Recipe"

# Entries of an evaluator's row that the card reports: the hub's name of the metric, and a title.
_METRICS = {
    "bleu": ("bleu", "BLEU"),
    "bleu_drawdown": ("bleu_drawdown", "BLEU drawdown of an edit (points)"),
    "error_rate": ("error_rate", "Error rate"),
    "drawdown": ("drawdown", "Drawdown of an edit (fraction)"),
    "success_rate": ("success_rate", "Success rate of edits (fraction)"),
    "verified_rate": ("verified_rate", "Edits that decoding confirms (fraction)"),
    "num_steps": ("num_steps", "Gradient steps of an edit"),
}


def complete_model_card(folder: str | Path, config: EditorConfig, recipe: Mapping[str, Any] | None = None) -> None:
    """Adds the tag `editable` and how to edit the model to `README.md` in `folder`, once.

    Args:
        folder: Of the checkpoint; a card is started if there is none.
        config: The checkpoint's editor.
        recipe: How the model was trained, for another section; what JSON can hold.
    """
    card = _load(folder)
    card.data.tags = [*dict.fromkeys([*(card.data.tags or []), TAG])]
    if _HEADING not in card.text:
        card.text = f"{card.text.rstrip()}\n\n{_HEADING}\n\n{_how_to_edit(config)}"
    if recipe is not None and _RECIPE not in card.text:
        card.text = f"{card.text.rstrip()}\n\n{_RECIPE}\n\n```json\n{json.dumps(recipe, indent=2)}\n```\n"
    write_atomically(Path(folder, "README.md"), str(card))


def _how_to_edit(config: EditorConfig) -> str:
    trained = "This model was trained with Editable Training (Sinitsin et al., ICLR 2020):"
    if config.editor not in EDITORS:  # a part of the model
        return f"""{trained} its own editor changes
{", ".join(f"`{layer}`" for layer in config.layers)} to fix a given mistake and change little else.

```python
import editable_hf.baselines  # lets the Auto classes know the model
from editable_hf import edit, edited

result = edit(model, constraint, model.editor.build(), {config.layers})
```
"""
    values = ", ".join(f"{name} {value:.4g}" for name, value in config.hyperparameters.items())
    return f"""{trained} at most {config.max_steps} steps of
{config.editor} ({values}) on {", ".join(f"`{layer}`" for layer in config.layers)} fix a given mistake and change
little else. `editor_config.json` holds these values.

```bash
pip install editable_hf
editable-hf edit MODEL --source "..." --target "..." -o patch   # images: --image FILE --target CLASS
editable-hf diff MODEL patch --data test.tsv                     # what else the patch changes
```
"""


def add_results(
    folder: str | Path,
    row: Mapping[str, Any],
    *,
    task: str,
    dataset: str,
    dataset_name: str,
    license: str | None = None,
) -> None:
    """Puts a row of results into the card's `model-index`, in place of an earlier one.

    Args:
        folder: Of the checkpoint, with or without a card.
        row: From an evaluator's `summarize`.
        task: Of the hub: `translation` or `image-classification`.
        dataset: Id of the data, or a short name without spaces.
        dataset_name: What was scored, e.g. the recipe's name of the test set.
        license: Of the data that the model was trained on, a hub identifier; left as it is if not given.
    """
    card = _load(folder)
    card.data.model_name = card.data.model_name or Path(folder).resolve().name
    card.data.eval_results = [
        EvalResult(task, dataset, dataset_name, metric, float(row[key]), metric_name=title)
        for key, (metric, title) in _METRICS.items()
        if row.get(key) is not None
    ]
    if license is not None:
        card.data.license = license
    write_atomically(Path(folder, "README.md"), str(card))


def _load(folder: str | Path) -> ModelCard:
    path = Path(folder, "README.md")
    return ModelCard.load(path) if path.exists() else ModelCard("---\nlibrary_name: transformers\n---\n")
