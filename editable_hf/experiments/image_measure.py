"""How a row of an image recipe is measured: the editor is chosen on validation images, then test edits are applied."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from editable_hf import EditableImageTrainingArguments, EditorConfig
from editable_hf.core.editors import Editor, LearnableEditor
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.experiments.image_parts import ImageModelOptions, ImageSets, load_classifier
from editable_hf.experiments.image_recipe import ImageRecipeConfig, RowOptions
from editable_hf.experiments.row_methods import Row, Setting, Subject, Validate
from editable_hf.experiments.stages import Stage

# The mean drawdown for resampled edits and test images, from which rows get the interval of their ratio.
RESAMPLED = "resampled.npy"


class EditSets(NamedTuple):
    """Which edits every row is measured with.

    Attributes:
        test: Requests that are reported on.
        test_images: What their `image_index` refers to.
        validation: Requests that the editor's hyperparameters are chosen with.
        validation_images: What their `image_index` refers to.
        stage: The stage that made the requests.
    """

    test: Dataset
    test_images: Dataset
    validation: Dataset
    validation_images: Dataset
    stage: Stage


def load_network(stage: Stage, images: ImageSets) -> PreTrainedModel:
    options = ImageModelOptions(weights=str(stage.folder))
    return load_classifier(options, images.num_classes).to(PartialState().device)


def row_editor(config: ImageRecipeConfig, options: RowOptions, network: Stage) -> EditorConfig:
    """The editor that a row's network was trained with, or for other networks the one that its options name."""
    if options.network is None and options.train:
        return EditorConfig.from_pretrained(network.folder)
    args = EditableImageTrainingArguments(str(network.folder), **{**config.training, **options.training})
    learnable = LearnableEditor(args.editor, False, False, learning_rate=args.edit_learning_rate)
    return EditorConfig.of(learnable, options.layers, config.evaluation.max_steps)


def chosen_editor(row: Row) -> Editor:
    """The gradient editor that a row of the finished table was measured with."""
    return EditorConfig(row["editor"], row["hyperparameters"]).build_editor()


def measure_row(
    config: ImageRecipeConfig, images: ImageSets, network: Stage, edits: EditSets, name: str, folder: Path
) -> None:
    """Fills `folder` with `edits.jsonl`, `resampled.npy` and `row.json`; what a killed run left there is not repeated.

    All processes share the edits, those of the tuning too.
    """
    max_steps = config.evaluation.max_steps
    subject = row_subject(config, images, network, edits, name, folder)
    evaluator = row_evaluator(config, subject.model, subject.layers, images.test, edits.test_images)
    path = folder / "edits.jsonl"
    records = evaluator.evaluate(edits.test, subject.editor, max_steps=max_steps, path=path, progress=name)
    row = evaluator.summarize(name, records, max_steps=max_steps, **subject.entries)
    if PartialState().is_main_process:
        np.save(folder / RESAMPLED, evaluator.resampled(records)["drawdown"])
        (folder / "row.json").write_text(json.dumps(row, indent=2), encoding="utf-8")


def row_subject(
    config: ImageRecipeConfig, images: ImageSets, network: Stage, edits: EditSets, name: str, folder: Path
) -> Subject:
    """The row's network, ready to be edited, with the hyperparameters that do best on validation edits and images."""
    options, model = config.models[name], load_network(network, images)
    start, validate = row_editor(config, options, network), _validation(config, images, edits, model, name, folder)
    setting = Setting(config, images, model, options.layers, start, validate, folder)
    subject = options.method.subject(setting)
    return subject._replace(entries={**subject.entries, "layers": ",".join(options.layers)})


def _validation(
    config: ImageRecipeConfig, images: ImageSets, edits: EditSets, model: PreTrainedModel, name: str, folder: Path
) -> Validate:
    """What an editor does on validation edits and images; kept in a file of the title, if there is one."""
    options = config.evaluation

    @cache
    def evaluator() -> ErrorDrawdownEvaluator:
        scored = images.validation.select(range(min(options.num_validation_images, len(images.validation))))
        return row_evaluator(config, model, config.models[name].layers, scored, edits.validation_images)

    def validate(editor: Editor, title: str | None = None) -> Row:
        kept = {} if title is None else {"path": folder / f"validation-{title}.jsonl"}
        progress = None if title is None else f"{name}, validation, {title}"
        records = evaluator().evaluate(
            edits.validation, editor, max_steps=options.max_steps, progress=progress, **kept
        )
        return evaluator().summarize(name, records)

    return validate


def row_evaluator(
    config: ImageRecipeConfig, model: PreTrainedModel, layers: list[str], scored: Dataset, edit_images: Dataset
) -> ErrorDrawdownEvaluator:
    """Measures edits of `edit_images` by what they do to the images `scored`."""
    sizes = {"batch_size": config.evaluation.batch_size, "num_workers": config.evaluation.num_workers}
    return ErrorDrawdownEvaluator(model, scored, edit_images, layers=layers, **sizes)
