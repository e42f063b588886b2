"""The YAML file of `compare_editors.py`, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from editable_hf import EditableImageTrainingArguments
from editable_hf.core.editors import EDITORS
from editable_hf.experiments.image_parts import ImageDataOptions, ImageModelOptions
from editable_hf.experiments.recipe_config import RecipeFile


@dataclass
class TuningOptions:
    """`num_trials` for each editor and choice of layers, each with `num_edits` edits on `num_images` images."""

    num_trials: int = 50
    num_edits: int = 100
    num_images: int = 2_000
    min_success_rate: float = 0.95


@dataclass
class EvaluationOptions:
    """`num_edits_by_layers` replaces `num_edits` for layers that take long, such as the whole model."""

    num_edits: int = 1_000
    num_edits_by_layers: dict[str, int] = field(default_factory=dict)
    max_steps: int = 10
    batch_size: int = 250


@dataclass
class CompareConfig:
    """One run. `cells` lists for each editor the layers that it edits; `training` (fields of
    `EditableImageTrainingArguments`) trains the classifier first, where the model has no weights."""

    output_dir: str
    seed: int
    data: ImageDataOptions
    model: ImageModelOptions
    tuning: TuningOptions
    evaluation: EvaluationOptions
    cells: dict[str, list[str]]
    training: dict[str, Any]


_SECTIONS = {
    "data": ImageDataOptions,
    "model": ImageModelOptions,
    "tuning": TuningOptions,
    "evaluation": EvaluationOptions,
}

_SMOKE: dict[str, dict[str, Any]] = {
    "data": {"max_train_samples": 100, "max_validation_samples": 40, "max_test_samples": 40},
    "tuning": {"num_trials": 2, "num_edits": 3, "num_images": 20},
    "evaluation": {"num_edits": 3, "num_edits_by_layers": {}},
    "training": {"max_steps": 2},
}


def load_config(
    config: str,
    output_dir: str | None = None,
    data: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
    smoke: bool = False,
) -> CompareConfig:
    """Reads a YAML file and applies the command line's overrides.

    Raises:
        ValueError: For an unknown section, key or editor, naming those that exist, or what is not a section.
    """
    file = RecipeFile(config, [*_SECTIONS, "cells", "training"])
    cells, training = file.sections["cells"], file.sections["training"]
    wrong = sorted(set(cells) - set(EDITORS))
    if wrong or not cells:
        raise ValueError(f"{config}: `cells` must give layers for editors out of {', '.join(EDITORS)}, got {wrong}.")
    file.check_training("section 'training'", training, EditableImageTrainingArguments)
    file.override({"data": {"path": data}, "model": {"weights": weights}})
    if smoke:
        file.override(_SMOKE)
    run = file.run_options("runs/compare_editors", output_dir, seed, smoke)
    return CompareConfig(**run, **file.parse(_SECTIONS), cells=cells, training=training)
