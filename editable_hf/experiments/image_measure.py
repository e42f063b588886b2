"""How a row of an image recipe is measured: the editor is chosen on validation images, then test edits are applied."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from editable_hf import EditableImageTrainingArguments, EditorConfig
from editable_hf.baselines.dknn import DkNNForImageClassification, flip_labels
from editable_hf.baselines.ewc import EWC_WEIGHTS, diagonal_fisher, ewc, normalize_fisher
from editable_hf.baselines.rank_one import feature_moment, rank_one
from editable_hf.core.editing import AnyEditor
from editable_hf.core.editors import Editor, LearnableEditor, Params
from editable_hf.data.atomic import write_atomically
from editable_hf.evaluation.error_edits import ErrorDrawdownEvaluator
from editable_hf.experiments.image_parts import ImageModelOptions, ImageSets, load_classifier
from editable_hf.experiments.image_recipe import CNP, DKNN, EWC, RANK_ONE, ImageRecipeConfig, RowOptions
from editable_hf.experiments.stages import Stage
from editable_hf.experiments.tuning import build_editor, tune_editor
from editable_hf.models.extra_block import find_head

Row = dict[str, Any]
Validate = Callable[..., Row]


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


class Subject(NamedTuple):
    """What is edited for a row, how, and what its table says about that.

    Attributes:
        model: Same.
        layers: What an edit moves.
        editor: Same.
        entries: Of the row, the editor's name and hyperparameters among them.
    """

    model: PreTrainedModel
    layers: list[str]
    editor: AnyEditor
    entries: Row


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
    """Fills `folder` with `edits.jsonl` and `row.json`; what a killed run left there is not repeated.

    All processes share the edits, those of the tuning too.
    """
    max_steps = config.evaluation.max_steps
    subject = row_subject(config, images, network, edits, name, folder)
    evaluator = _evaluator(config, subject.model, subject.layers, images.test, edits.test_images)
    path = folder / "edits.jsonl"
    records = evaluator.evaluate(edits.test, subject.editor, max_steps=max_steps, path=path, progress=name)
    row = evaluator.summarize(name, records, max_steps=max_steps, **subject.entries)
    if PartialState().is_main_process:
        (folder / "row.json").write_text(json.dumps(row, indent=2), encoding="utf-8")


def row_subject(
    config: ImageRecipeConfig, images: ImageSets, network: Stage, edits: EditSets, name: str, folder: Path
) -> Subject:
    """The row's network, ready to be edited, with the hyperparameters that do best on validation edits and images."""
    options, model = config.models[name], load_network(network, images)
    shown = {"layers": ",".join(options.layers)}
    if options.method == DKNN:
        model = DkNNForImageClassification.from_backbone(model, images.train_plain, options.layers, options.neighbors)
        entries = {"editor": "flip labels", "hyperparameters": {}, "memory": model.memory, **shown}
        return Subject(model, ["labels"], flip_labels(), entries)
    if options.method == RANK_ONE:
        count = min(options.num_fisher_images, len(images.train_plain))
        editor = rank_one(feature_moment(model, images.train_plain, num_examples=count, seed=config.seed))
        entries = {"editor": "rank one", "hyperparameters": {}, **shown}
        return Subject(model, [f"{find_head(model)}.weight"], editor, entries)
    if options.method == CNP:
        entries = {"editor": "condition vector", "hyperparameters": {}, **shown}
        return Subject(model, ["condition"], model.editor.build(), entries)

    start, validate = row_editor(config, options, network), _validation(config, images, edits, model, name, folder)
    if options.num_trials:
        fisher = _fisher(config, images, model, options, folder) if options.method == EWC else None
        editor, entries = _tuned(config, options, start, fisher, validate, folder)
    else:
        editor, entries = _best_rate(config, start, validate)
    return Subject(model, options.layers, editor, {**entries, **shown})


def _validation(
    config: ImageRecipeConfig, images: ImageSets, edits: EditSets, model: PreTrainedModel, name: str, folder: Path
) -> Validate:
    """What an editor does on validation edits and images; kept in a file of the title, if there is one."""
    options = config.evaluation

    @cache
    def evaluator() -> ErrorDrawdownEvaluator:
        scored = images.validation.select(range(min(options.num_validation_images, len(images.validation))))
        return _evaluator(config, model, config.models[name].layers, scored, edits.validation_images)

    def validate(editor: Editor, title: str | None = None) -> Row:
        kept = {} if title is None else {"path": folder / f"validation-{title}.jsonl"}
        progress = None if title is None else f"{name}, validation, {title}"
        records = evaluator().evaluate(
            edits.validation, editor, max_steps=options.max_steps, progress=progress, **kept
        )
        return evaluator().summarize(name, records)

    return validate


def _evaluator(
    config: ImageRecipeConfig, model: PreTrainedModel, layers: list[str], scored: Dataset, edit_images: Dataset
) -> ErrorDrawdownEvaluator:
    sizes = {"batch_size": config.evaluation.batch_size, "num_workers": config.evaluation.num_workers}
    return ErrorDrawdownEvaluator(model, scored, edit_images, layers=layers, **sizes)


def _best_rate(config: ImageRecipeConfig, start: EditorConfig, validate: Validate) -> tuple[Editor, Row]:
    """The editor with its own alpha or another of the file's, and what each did."""
    options, tried = config.evaluation, []
    rates = sorted({start.hyperparameters["learning_rate"], *options.learning_rates.get(start.editor, ())})
    for rate in rates if len(rates) > 1 else ():
        row = validate(start.build_editor(learning_rate=rate), f"alpha{rate:g}")
        tried.append({"learning_rate": rate, "drawdown": row["drawdown"], "success_rate": row["success_rate"]})

    def rank(trial: dict[str, float]) -> tuple[float, float]:
        return max(0.0, options.min_success_rate - trial["success_rate"]), trial["drawdown"]

    best = min(tried, key=rank)["learning_rate"] if tried else rates[0]
    hyperparameters = {**start.hyperparameters, "learning_rate": best}
    entries = {"editor": start.editor, "hyperparameters": hyperparameters, "tried": tried}
    return start.build_editor(learning_rate=best), entries


def _tuned(
    config: ImageRecipeConfig,
    options: RowOptions,
    start: EditorConfig,
    fisher: Params | None,
    validate: Validate,
    folder: Path,
) -> tuple[Editor, Row]:
    """The editor with all its hyperparameters as for Table 1, the weight of EWC's penalty among them."""
    wrap = None if fisher is None else partial(ewc, fisher=fisher)
    tuned = tune_editor(
        validate,
        start.editor,
        storage=folder / "studies.db",
        study_name="hyperparameters",
        num_trials=options.num_trials,
        min_success_rate=config.evaluation.min_success_rate,
        seed=config.seed,
        wrap=wrap,
        bounds=None if fisher is None else {"weight": EWC_WEIGHTS},
    )
    name = start.editor if fisher is None else f"{start.editor}+ewc"
    entries = {"editor": name, "hyperparameters": tuned.hyperparameters, "tuned": tuned._asdict()}
    return build_editor(start.editor, tuned.hyperparameters, wrap), entries


def _fisher(
    config: ImageRecipeConfig, images: ImageSets, model: PreTrainedModel, options: RowOptions, folder: Path
) -> Params:
    path = folder / "fisher.safetensors"
    with PartialState().main_process_first():
        if not path.exists():
            count = min(options.num_fisher_images, len(images.train_plain))
            how = {"labels": options.fisher_labels, "num_examples": count, "seed": config.seed}
            write_atomically(path, save(diagonal_fisher(model, images.train_plain, options.layers, **how)))
    return normalize_fisher(load_file(path, device=str(model.device)))
