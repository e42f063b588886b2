"""The YAML file and the command line of the image recipes: cifar10.py, imagenet.py, natural_adversarial.py."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import yaml
from image_parts import ImageDataOptions, ImageModelOptions
from transformers import HfArgumentParser

from editable_hf import EditableImageTrainingArguments
from editable_hf.core.editors import EDITORS

RANDOM, RANKS, ADVERSARIAL = "random", "ranks", "natural_adversarial"
_EDITOR_FIELDS = {"editor", "edit_learning_rate"}


@dataclass
class RowOptions:
    """One row of the table: a network, and what is edited in it.

    Args:
        train: Train the starting network further, as `training` says. Without it the row shows the starting network.
        extra: Units of the extra block that is put in first (section 4.3: 4096); 0 for none.
        requests: What it is trained to be edited for: none (base loss alone), random classes, classes matched by rank
            (ranks) or natural adversarial examples (natural_adversarial). The last two are for that recipe.
        layers: What edits may move.
        network: The row whose network is edited here too, with another editor or on other layers.
        compare_to: The row that the drawdown is divided by.
        training: Fields of `EditableImageTrainingArguments` for this row; in the file they stand beside the others.
    """

    train: bool = True
    extra: int = 0
    requests: str = "none"
    layers: list[str] = field(default_factory=lambda: ["chain3"])
    network: str | None = None
    compare_to: str | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        kinds = ("none", RANDOM, RANKS, ADVERSARIAL)
        if self.requests not in kinds:
            raise ValueError(f"`requests` must be one of {', '.join(kinds)}, got {self.requests!r}.")
        if isinstance(self.extra, bool) or not isinstance(self.extra, int) or self.extra < 0:
            raise ValueError(f"`extra` must be a number of units, 4096 in the paper, or 0, got {self.extra!r}.")
        if isinstance(self.layers, str):
            self.layers = [self.layers]
        if "edit_layers" in self.training:
            raise ValueError("Expected `layers`, which are trained and measured alike, but got `edit_layers`.")
        if self.network is not None and (not self.train or self.extra or self.requests != "none"):
            raise ValueError(f"`network: {self.network}` has been made already: leave out train, extra and requests.")
        if not self.train and self.requests != "none":
            raise ValueError(f"`train: false` leaves nothing that `requests: {self.requests}` could be used for.")
        unused = sorted(set(self.training) - _EDITOR_FIELDS)
        if unused and (self.network is not None or not self.train):
            raise ValueError(f"Nothing is trained for this row, so {unused} would have no effect; remove them.")


@dataclass
class EvaluationOptions:
    """What the rows are measured on.

    Every row's alpha is chosen on validation images, where enough edits succeed for the least drawdown, out of its
    own (learnt, or `edit_learning_rate`) and `learning_rates`, which lists more of them by editor.
    """

    num_edits: int = 1_000
    max_steps: int = 10
    batch_size: int = 250
    num_workers: int = 0
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    num_validation_edits: int = 100
    num_validation_images: int = 2_000
    min_success_rate: float = 0.95

    def __post_init__(self):
        wrong = sorted(set(self.learning_rates) - set(EDITORS))
        if wrong:
            raise ValueError(f"`learning_rates` must be by editor ({', '.join(EDITORS)}), got {wrong}.")


@dataclass
class AdversarialOptions:
    """Section 4.3.1: natural adversarial examples, and what else is measured with them.

    Args:
        source: Their folder (`imagenet-a`), with a folder for each class; or `mistakes`, for the validation images
            that the starting network gets wrong.
        num_evaluation: How many are edited for the tables; the others may be trained on.
        sequence_rows: Rows that are edited again and again.
        sequence_length: Edits in a row.
        sequence_runs: Repetitions.
        generalization_rows: Rows whose edits are tried on the nearest test images.
        num_augmentations: Of each image of such a pair.
        embedding: Hub id or folder of the vision model whose pooled features say what is near; by default the starting
            network's. The paper has InceptionV3.
    """

    source: str = "mistakes"
    num_evaluation: int = 1_000
    sequence_rows: list[str] = field(default_factory=list)
    sequence_length: int = 10
    sequence_runs: int = 10
    generalization_rows: list[str] = field(default_factory=list)
    num_augmentations: int = 5
    embedding: str | None = None


@dataclass
class ImageRecipeConfig:
    """One run. `training` holds for every network; `pretrain` is what the starting network is trained with first, on
    top of that (left out: it is the model's weights, or random ones, as they are). `adversarial` is for one recipe."""

    output_dir: str
    seed: int
    data: ImageDataOptions
    model: ImageModelOptions
    evaluation: EvaluationOptions
    adversarial: AdversarialOptions
    training: dict[str, Any]
    pretrain: dict[str, Any]
    models: dict[str, RowOptions]


_SECTIONS = {
    "data": ImageDataOptions,
    "model": ImageModelOptions,
    "evaluation": EvaluationOptions,
    "adversarial": AdversarialOptions,
}
_NAMES = (*_SECTIONS, "training", "pretrain", "models")
_SMOKE: dict[str, dict[str, Any]] = {
    "data": {"max_train": 100, "max_validation": 40, "max_test": 40},
    "evaluation": {"num_edits": 3, "num_validation_edits": 2, "num_validation_images": 20, "max_steps": 3},
    "adversarial": {"num_evaluation": 4, "sequence_length": 2, "sequence_runs": 2},
    "training": {"max_steps": 2, "per_device_train_batch_size": 16, "edit_max_steps": 2, "dataloader_num_workers": 0},
}


def folder_name(row: str) -> str:
    """A row's name as part of a folder's."""
    return re.sub(r"[^\w.=-]+", "-", row).strip("-")


def load_config(
    config: str,
    *,
    adversarial: bool = False,
    output_dir: str | None = None,
    smoke: bool = False,
    seed: int | None = None,
    data: str | None = None,
    weights: str | None = None,
    natural_adversarial: str | None = None,
    embedding: str | None = None,
) -> ImageRecipeConfig:
    """Reads a YAML file and applies the command line's overrides.

    Args:
        config: The file.
        adversarial: Whether it is for natural_adversarial.py, with an `adversarial` section.
        output_dir: Instead of the file's.
        smoke: Sizes with which all runs within seconds.
        seed: Instead of the file's.
        data: Instead of the file's `path`.
        weights: Instead of the file's, and instead of pretraining.
        natural_adversarial: Instead of the file's `source`.
        embedding: Instead of the file's.

    Raises:
        ValueError: For an unknown section, key or row, naming those that exist, or what is not a section.
    """
    content = _read(config, adversarial)
    sections: dict[str, dict[str, Any]] = {name: dict(content.get(name) or {}) for name in _NAMES}
    given = {"data": {"path": data}, "model": {"weights": weights}}
    given["adversarial"] = {"source": natural_adversarial, "embedding": embedding}
    for name, values in given.items():
        sections[name] |= {key: value for key, value in values.items() if value is not None}
    if weights is not None:
        sections["pretrain"] = {}
    if smoke:
        for name, values in _SMOKE.items():
            sections[name] |= values
        if sections["pretrain"]:
            sections["pretrain"] |= _SMOKE["training"]
    parsed: dict[str, Any] = {name: _parse(config, name, sections[name]) for name in _SECTIONS}
    for name in ("training", "pretrain"):
        _check_training(config, f"section {name!r}", sections[name])
    models = _rows(config, sections["models"], adversarial, smoke)
    for key in ("sequence_rows", "generalization_rows"):
        _check_names(config, key, getattr(parsed["adversarial"], key), models)
    folder = output_dir or content.get("output_dir", "runs/images")
    return ImageRecipeConfig(
        output_dir=f"{folder}-smoke" if smoke and output_dir is None else folder,
        seed=content.get("seed", 0) if seed is None else seed,
        **parsed,
        training=sections["training"],
        pretrain=sections["pretrain"],
        models=models,
    )


def _read(config: str, adversarial: bool) -> dict[str, Any]:
    with open(config, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    names = [name for name in _NAMES if adversarial or name != "adversarial"]
    if not isinstance(content, dict):
        raise ValueError(f"{config} must hold sections, {names}, but holds {content!r:.60}.")
    unknown = set(content) - {*names, "output_dir", "seed"}
    if unknown:
        raise ValueError(f"{config}: unknown sections {sorted(unknown)}; expected {names}, output_dir and seed.")
    for name in names:
        if not isinstance(content.get(name) or {}, dict):
            raise ValueError(f"{config}: section {name!r} must hold keys and values, but holds {content[name]!r:.60}.")
    return content


def _parse(config: str, name: str, options: dict[str, Any]) -> Any:
    try:
        (parsed,) = HfArgumentParser(_SECTIONS[name]).parse_dict(options)
    except ValueError as error:
        raise ValueError(f"{config}, section {name!r}: {error}") from error
    return parsed


def _rows(config: str, section: Mapping[str, Any], adversarial: bool, smoke: bool) -> dict[str, RowOptions]:
    if not section:
        raise ValueError(f"{config}: `models` must give at least one row, e.g. `pretrained: {{train: false}}`.")
    own = set(RowOptions.__dataclass_fields__) - {"training"}
    rows: dict[str, RowOptions] = {}
    for name, values in section.items():
        if not isinstance(values, dict):
            raise ValueError(f"{config}: row {name!r} of `models` must hold keys and values, but holds {values!r}.")
        training = {key: value for key, value in values.items() if key not in own}
        _check_training(config, f"row {name!r}", training)
        try:
            row = RowOptions(**{key: value for key, value in values.items() if key in own}, training=training)
            if row.requests in (RANKS, ADVERSARIAL) and not adversarial:
                raise ValueError(f"`requests: {row.requests}` needs recipes/natural_adversarial.py.")
        except ValueError as error:
            raise ValueError(f"{config}, row {name!r}: {error}") from error
        _check_names(config, f"row {name!r}", [each for each in (row.network, row.compare_to) if each], rows)
        if row.network is not None and rows[row.network].network is not None:
            raise ValueError(f"{config}, row {name!r}: `network` must be a row with a network of its own.")
        if folder_name(name) in map(folder_name, rows):
            raise ValueError(f"{config}: two rows would leave their results in 'edits-{folder_name(name)}'.")
        if smoke and row.train and row.network is None:
            row.training |= _SMOKE["training"]
        rows[name] = row
    return rows


def _check_training(config: str, where: str, options: Mapping[str, Any]) -> None:
    fields = EditableImageTrainingArguments.__dataclass_fields__
    wrong = sorted(set(options) - set(fields))
    if wrong:
        similar = get_close_matches(wrong[0], [*fields, *RowOptions.__dataclass_fields__], n=1)
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        raise ValueError(f"{config}, {where}: {wrong} are no training arguments.{hint}")


def _check_names(config: str, where: str, names: list[str], rows: Mapping[str, RowOptions]) -> None:
    wrong = [name for name in names if name not in rows]
    if wrong:
        raise ValueError(f"{config}, {where}: expected names of rows, {list(rows)} so far, but got {wrong}.")


def parse_args(description: str, adversarial: bool = False) -> ImageRecipeConfig:
    """The configuration that the command line asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, see recipes/configs/")
    parser.add_argument("--output_dir", help="output folder, instead of the config's")
    parser.add_argument("--data", help="folder with the images, instead of the config's")
    parser.add_argument("--weights", help="checkpoint folder, hub id or published .th file, instead of pretraining")
    if adversarial:
        parser.add_argument("--natural_adversarial", help="folder with the examples, instead of the config's")
        parser.add_argument("--embedding", help="hub id or folder of the model that says what is near")
    parser.add_argument("--seed", type=int, help="seed of everything, instead of the config's")
    parser.add_argument("--smoke", action="store_true", help="the same stages in seconds, with meaningless numbers")
    try:
        return load_config(**vars(parser.parse_args()), adversarial=adversarial)
    except (ValueError, OSError) as error:
        parser.error(str(error))
