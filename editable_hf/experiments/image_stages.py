"""What the stages of the image recipes do, each filling one folder: starting network, requests, networks, edits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import load_from_disk
from transformers import PreTrainedModel, set_seed

from editable_hf import EditableImageTrainer, EditableImageTrainingArguments
from editable_hf.core.selection import select_parameters
from editable_hf.data.image_requests import ImageEditRequests, make_image_requests
from editable_hf.evaluation.records import read_records
from editable_hf.evaluation.two_way import NUM_SAMPLES, ratio_of
from editable_hf.experiments.image_measure import RESAMPLED, EditSets, load_network, measure_row, row_editor
from editable_hf.experiments.image_parts import ImageSets, load_classifier
from editable_hf.experiments.image_recipe import RANDOM, ImageRecipeConfig, RowOptions
from editable_hf.experiments.plots import plot_drawdowns, plot_rate_curves, plots_available
from editable_hf.experiments.recipe_config import folder_name
from editable_hf.experiments.report import (
    ERROR_COLUMNS,
    curves_of,
    format_curves,
    format_ratios,
    format_table,
    write_results,
)
from editable_hf.experiments.row_methods import Row
from editable_hf.experiments.stages import Stage, Stages
from editable_hf.models import ExtraBlockForImageClassification
from editable_hf.training.checkpoints import train_to


class TrainingRequests(NamedTuple):
    """What a network is trained to be edited for, and the stage that it depends on, if any."""

    dataset: ImageEditRequests
    stage: Stage | None = None


def starting_network(config: ImageRecipeConfig, stages: Stages, images: ImageSets) -> Stage:
    """The network that all rows start from."""
    # Weights would be taken for their own teacher.
    options = {**config.training, "base_loss": "task", **config.pretrain} if config.pretrain else None
    inputs = {"data": asdict(config.data), "model": asdict(config.model), "seed": config.seed, "training": options}
    build = partial(_make_start, config, images, options)
    return stages.run("start", inputs, [], build, every_process=True)


def _make_start(config: ImageRecipeConfig, images: ImageSets, options: dict[str, Any] | None, folder: Path) -> None:
    set_seed(config.seed)
    model = load_classifier(config.model, images.num_classes)
    for row in config.models.values():  # rather now than when the row's turn comes
        select_parameters(model, [each for each in row.layers if each != "extra"] or ["all"])
    if options is None:
        _save(model, folder)
    else:
        _train(model, config, images, options, None, folder)


def random_edits(config: ImageRecipeConfig, stages: Stages, images: ImageSets) -> EditSets:
    """Section 4.1: test images, each with a class drawn uniformly; and validation images for choosing alpha."""
    options = config.evaluation
    counts = {"test": options.num_edits, "validation": options.num_validation_edits}
    splits = {"test": images.test, "validation": images.validation}

    def build(folder: Path) -> None:
        for offset, (name, split) in enumerate(splits.items()):
            labels = split.with_format(None)["label"]
            count = min(counts[name], len(labels))
            requests = make_image_requests(labels, images.num_classes, count, config.seed + offset)
            requests.save_to_disk(folder / name)

    stage = stages.run("requests", {**counts, "data": asdict(config.data), "seed": config.seed}, [], build)
    requests = {name: load_from_disk(stage.folder / name) for name in splits}
    return EditSets(requests["test"], images.test, requests["validation"], images.validation, stage)


def random_training_requests(config: ImageRecipeConfig, images: ImageSets) -> dict[str, TrainingRequests]:
    """Section 4.1: training images, each with a class drawn uniformly."""
    requests = ImageEditRequests(images.train, num_classes=images.num_classes, seed=config.seed)
    return {RANDOM: TrainingRequests(requests)}


class Rows:
    """Trains and measures the rows of a table, one after another.

    Args:
        config: Of the recipe.
        stages: Where the results go.
        images: The data.
        start: The network that all rows start from.
        edits: What every row is measured with.
        requests: What rows can be trained with, by the name that `requests` of a row has.

    Attributes:
        networks: The stage of each row's network, by the row's name.
        table: The rows as they are printed, by name.
    """

    def __init__(
        self,
        config: ImageRecipeConfig,
        stages: Stages,
        images: ImageSets,
        start: Stage,
        edits: EditSets,
        requests: Mapping[str, TrainingRequests],
    ):
        self.config, self.stages, self.images, self.start, self.edits = config, stages, images, start, edits
        self.requests = requests
        self.networks: dict[str, Stage] = {}
        self.table: dict[str, Row] = {}

    def run(self) -> list[Row]:
        """The table: rows that are asked for, and those that are there already; `results.json` grows with it."""
        models, drawdowns, samples = self.config.models, {}, {}
        asked = set(self.config.rows or models)
        trained = asked | {models[name].network for name in asked}
        for name, options in models.items():
            network, cell = self._network(name, options, name in trained), None
            if network is not None:
                self.networks[name] = network
                cell = self._measured(name, options, network, name in asked)
            if cell is not None:
                self.table[name] = json.loads((cell.folder / "row.json").read_text(encoding="utf-8"))
                records = read_records(cell.folder / "edits.jsonl")
                drawdowns[name] = [
                    100 * abs(record["error_rate"] - self.table[name]["error_rate"]) for record in records
                ]
                samples[name] = np.load(cell.folder / RESAMPLED)
                found = [self._compared(name, other, samples) for other in options.compare_to]
                self.table[name]["drawdown_ratios"] = [ratio for ratio in found if ratio is not None]
                if self.stages.state.is_main_process:
                    self._write(drawdowns)
        return list(self.table.values())

    def _compared(self, name: str, other: str, samples: Mapping[str, np.ndarray]) -> Row | None:
        if other not in samples or not self.table[other]["drawdown"] > 0:
            return None
        means = (self.table[each]["drawdown"] for each in (name, other))
        return {"to": other, **ratio_of(next(means), samples[name], next(means), samples[other])._asdict()}

    def _write(self, drawdowns: Mapping[str, list[float]]) -> None:
        folder, config, test_name = self.stages.output_dir, self.config, self.images.test_name
        rows = list(self.table.values())
        write_results(folder / "results.json", rows, asdict(config), config.seed, test_name=test_name)
        if plots_available():
            plot_drawdowns(drawdowns, folder / "drawdown.png", test_name, "error rate")
            if curves := curves_of(rows):
                plot_rate_curves(curves, folder / "learning_rates.png", "Validation edits, over learning rates")

    def _network(self, name: str, options: RowOptions, wanted: bool) -> Stage | None:
        if options.network is not None:
            return self.networks.get(options.network)
        if not options.train and not options.extra:
            return self.start
        training = {**self.config.training, **options.training, "edit_layers": options.layers}
        training = options.method.training(training)
        inputs = {"requests": options.requests, "extra": options.extra, "seed": self.config.seed}
        inputs |= {"training": training if options.train else None}
        if training["edit_layers"] != options.layers:  # a condition vector is trained; which chain gets it matters too
            inputs |= {"cnp": options.layers}
        requests = self.requests.get(options.requests)
        after = [self.start, *([requests.stage] if requests is not None and requests.stage is not None else [])]
        build = partial(_make_network, self.config, self.images, self.start, options, training, requests)
        return self.stage(wanted, f"network-{folder_name(name)}", inputs, after, build, every_process=True)

    def _measured(self, name: str, options: RowOptions, network: Stage, wanted: bool) -> Stage | None:
        editor = row_editor(self.config, options, network)
        own = {key: value for key, value in asdict(options).items() if key not in ("training", "compare_to")}
        inputs = {**asdict(self.config.evaluation), "num_workers": None, "name": name, **own}
        inputs |= {"editor": editor.editor, "hyperparameters": editor.hyperparameters, "num_samples": NUM_SAMPLES}
        build = partial(measure_row, self.config, self.images, network, self.edits, name)
        after = [network, self.edits.stage]
        return self.stage(wanted, f"edits-{folder_name(name)}", inputs, after, build, every_process=True)

    def stage(self, wanted: bool, *args: Any, **options: Any) -> Stage | None:
        """The stage that [`Stages.run`] makes of the arguments; if it is not wanted only where it is there."""
        if wanted:
            return self.stages.run(*args, **options)
        stage, there = self.stages.look(*args[:3])
        return stage if there else None


def _make_network(
    config: ImageRecipeConfig,
    images: ImageSets,
    start: Stage,
    options: RowOptions,
    training: dict[str, Any],
    requests: TrainingRequests | None,
    folder: Path,
) -> None:
    set_seed(config.seed)
    model = load_network(start, images)
    model = options.method.network(model, options.layers, images)
    if options.extra:
        model = ExtraBlockForImageClassification.from_backbone(model, hidden_size=options.extra)
    if options.train:
        _train(model, config, images, training, requests, folder)
    else:
        _save(model, folder)


def _save(model: PreTrainedModel, folder: Path) -> None:
    if PartialState().is_main_process:
        model.save_pretrained(folder)


def _train(
    model: PreTrainedModel,
    config: ImageRecipeConfig,
    images: ImageSets,
    options: Mapping[str, Any],
    requests: TrainingRequests | None,
    folder: Path,
) -> None:
    """By Eq. 2 with `requests`, without them by the base loss alone; continues from the last whole checkpoint."""
    args = EditableImageTrainingArguments(str(folder / "checkpoints"), seed=config.seed, **options)
    trainer = EditableImageTrainer(
        model,
        args,
        train_dataset=images.train,
        eval_dataset=images.validation,
        edit_dataset=None if requests is None else requests.dataset,
    )
    train_to(trainer, folder)


def print_table(title: str, paper: list[Row], rows: list[Row], folder: Path, success_rate: float) -> None:
    print(f"\n{title}")
    print(format_table([*paper, *rows], ERROR_COLUMNS))
    print(*format_ratios(rows), *format_curves(curves_of(rows), success_rate), sep="\n")
    print(f"\nResults: {folder / 'results.json'}; every edit: {folder}/edits-*/edits.jsonl")
