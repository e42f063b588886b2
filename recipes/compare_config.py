"""The YAML file of `compare_editors.py`, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml
from image_parts import ImageDataOptions, ImageModelOptions
from transformers import HfArgumentParser

from editable_hf.core.editors import EDITORS


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
    "data": {"max_train": 100, "max_validation": 40, "max_test": 40},
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
        ValueError: For an unknown section, key or editor, naming those that exist.
    """
    with open(config, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    names = [*_SECTIONS, "cells", "training"]
    unknown = set(content) - {*names, "output_dir", "seed"}
    if unknown:
        raise ValueError(f"{config}: unknown sections {sorted(unknown)}; expected {names}, output_dir and seed.")
    sections = {name: dict(content.get(name) or {}) for name in names}
    wrong = sorted(set(sections["cells"]) - set(EDITORS))
    if wrong or not sections["cells"]:
        raise ValueError(f"{config}: `cells` must give layers for editors out of {', '.join(EDITORS)}, got {wrong}.")
    if data is not None:
        sections["data"]["path"] = data
    if weights is not None:
        sections["model"]["weights"] = weights
    if smoke:
        for name, values in _SMOKE.items():
            sections[name] |= values
    parsed = {}
    for name, options in _SECTIONS.items():
        try:
            (parsed[name],) = HfArgumentParser(options).parse_dict(sections[name])
        except ValueError as error:
            raise ValueError(f"{config}, section {name!r}: {error}") from error
    folder = output_dir or content.get("output_dir", "runs/compare_editors")
    return CompareConfig(
        output_dir=f"{folder}-smoke" if smoke and output_dir is None else folder,
        seed=content.get("seed", 0) if seed is None else seed,
        **parsed,
        cells=sections["cells"],
        training=sections["training"],
    )
