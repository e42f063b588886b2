"""What the stages of the image recipes do, each filling one folder: starting network, requests, networks, edits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset, load_from_disk
from image_parts import ImageModelOptions, ImageSets, load_classifier
from image_recipe import RANDOM, ImageRecipeConfig, RowOptions, folder_name
from transformers import PreTrainedModel, set_seed

from editable_hf import EditableImageTrainer, EditableImageTrainingArguments, EditorConfig
from editable_hf.analysis.image_plots import plot_error_drawdowns
from editable_hf.analysis.plots import plots_available
from editable_hf.core.editors import Editor, LearnableEditor
from editable_hf.core.selection import select_parameters
from editable_hf.data.image_requests import ImageEditRequests, make_image_requests
from editable_hf.evaluation.bootstrap import bootstrap_ratio
from editable_hf.evaluation.edits import read_records
from editable_hf.evaluation.error_edits import ErrorDrawdownEvaluator
from editable_hf.evaluation.report import ERROR_COLUMNS, format_table, write_results
from editable_hf.models import ExtraBlockForImageClassification
from editable_hf.training.stages import Stage, Stages

Row = dict[str, Any]


class EditSets(NamedTuple):
    """Which edits every row is measured with.

    Attributes:
        test: Requests that are reported on.
        test_images: What their `image_index` refers to.
        validation: Requests that alpha is chosen with.
        validation_images: What their `image_index` refers to.
        stage: The stage that made the requests.
    """

    test: Dataset
    test_images: Dataset
    validation: Dataset
    validation_images: Dataset
    stage: Stage


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
            requests = make_image_requests(len(labels), labels, images.num_classes, count, config.seed + offset)
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
        """The finished table; `results.json` grows with each row."""
        config, drawdowns = self.config, {}
        for name, options in config.models.items():
            self.networks[name] = self._network(name, options)
            cell = self._measured(name, options)
            row = json.loads((cell.folder / "row.json").read_text(encoding="utf-8"))
            records = read_records(cell.folder / "edits.jsonl")
            drawdowns[name] = [abs(record["error_rate"] - row["error_rate"]) for record in records]
            if options.compare_to is not None and sum(drawdowns[options.compare_to]) > 0:
                ratio = bootstrap_ratio(drawdowns[name], drawdowns[options.compare_to])
                row["drawdown_ratio"] = {"to": options.compare_to, **ratio._asdict()}
            self.table[name] = row
            if self.stages.state.is_main_process:
                folder = self.stages.output_dir
                rows = list(self.table.values())
                write_results(
                    folder / "results.json", rows, asdict(config), config.seed, test_name=self.images.test_name
                )
                if plots_available():
                    plot_error_drawdowns(drawdowns, folder / "drawdown.png", self.images.test_name)
        return list(self.table.values())

    def _network(self, name: str, options: RowOptions) -> Stage:
        if options.network is not None:
            return self.networks[options.network]
        if not options.train and not options.extra:
            return self.start
        training = {**self.config.training, **options.training, "edit_layers": options.layers}
        inputs = {"requests": options.requests, "extra": options.extra, "seed": self.config.seed}
        inputs["training"] = training if options.train else None
        requests = self.requests.get(options.requests)
        after = [self.start, *([requests.stage] if requests is not None and requests.stage is not None else [])]
        build = partial(_make_network, self.config, self.images, self.start, options, training, requests)
        return self.stages.run(f"network-{folder_name(name)}", inputs, after, build, every_process=True)

    def _measured(self, name: str, options: RowOptions) -> Stage:
        editor = row_editor(self.config, options, self.networks[name])
        inputs = {**asdict(self.config.evaluation), "num_workers": None, "layers": editor.layers, "name": name}
        inputs |= {"editor": editor.editor, "hyperparameters": editor.hyperparameters}
        build = partial(_measure, self.config, self.images, self.networks[name], self.edits, editor, name)
        return self.stages.run(f"edits-{folder_name(name)}", inputs, [self.networks[name], self.edits.stage], build)


def row_editor(config: ImageRecipeConfig, options: RowOptions, network: Stage) -> EditorConfig:
    """The editor that a row's network was trained with, or for other networks the one that its options name."""
    if options.network is None and options.train:
        return EditorConfig.from_pretrained(network.folder)
    args = EditableImageTrainingArguments(str(network.folder), **{**config.training, **options.training})
    learnable = LearnableEditor(args.editor, False, False, learning_rate=args.edit_learning_rate)
    return EditorConfig.of(learnable, options.layers, config.evaluation.max_steps)


def load_network(stage: Stage, images: ImageSets) -> PreTrainedModel:
    options = ImageModelOptions(weights=str(stage.folder))
    return load_classifier(options, images.num_classes).to(PartialState().device)


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
    # The state is written last: a checkpoint without it was cut short by a kill and cannot be resumed from.
    whole = [path.parent for path in Path(args.output_dir).glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / "trainer_state.json"))


def _measure(
    config: ImageRecipeConfig,
    images: ImageSets,
    network: Stage,
    edits: EditSets,
    editor: EditorConfig,
    name: str,
    folder: Path,
) -> None:
    options = config.evaluation
    model = load_network(network, images)
    common = {"layers": editor.layers, "batch_size": options.batch_size, "num_workers": options.num_workers}
    chosen, tried = _choose_editor(config, images, model, edits, editor, name, common, folder)
    evaluator = ErrorDrawdownEvaluator(model, images.test, edits.test_images, **common)
    path = folder / "edits.jsonl"
    built = chosen.build_editor()
    records = evaluator.evaluate(edits.test, built, max_steps=options.max_steps, path=path, progress=name)
    extra = {"editor": chosen.editor, "hyperparameters": chosen.hyperparameters, "max_steps": options.max_steps}
    row = evaluator.summarize(name, records, layers=",".join(chosen.layers), tried=tried, **extra)
    (folder / "row.json").write_text(json.dumps(row, indent=2), encoding="utf-8")


def _choose_editor(
    config: ImageRecipeConfig,
    images: ImageSets,
    model: PreTrainedModel,
    edits: EditSets,
    editor: EditorConfig,
    name: str,
    common: Mapping[str, Any],
    folder: Path,
) -> tuple[EditorConfig, list[dict[str, float]]]:
    """The editor with the alpha that does best on validation edits and images, and what each alpha did there."""
    options = config.evaluation
    own = editor.hyperparameters["learning_rate"]
    rates = sorted({own, *options.learning_rates.get(editor.editor, ())})
    if len(rates) == 1:
        return editor, []
    scored = images.validation.select(range(min(options.num_validation_images, len(images.validation))))
    evaluator = ErrorDrawdownEvaluator(model, scored, edits.validation_images, **common)
    tried = []
    for rate in rates:
        path, title = folder / f"validation-alpha{rate:g}.jsonl", f"{name}, validation, alpha={rate:g}"
        built: Editor = editor.build_editor(learning_rate=rate)
        records = evaluator.evaluate(edits.validation, built, max_steps=options.max_steps, path=path, progress=title)
        row = evaluator.summarize(name, records)
        tried.append({"learning_rate": rate, "drawdown": row["drawdown"], "success_rate": row["success_rate"]})

    def rank(trial: dict[str, float]) -> tuple[float, float]:
        return max(0.0, options.min_success_rate - trial["success_rate"]), trial["drawdown"]

    best = min(tried, key=rank)["learning_rate"]
    hyperparameters = {**editor.hyperparameters, "learning_rate": best}
    return EditorConfig(editor.editor, hyperparameters, editor.layers, editor.max_steps), tried


def chosen_editor(row: Row) -> Editor:
    """The editor that a row of the finished table was measured with."""
    return EditorConfig(row["editor"], row["hyperparameters"]).build_editor()


def print_table(title: str, paper: list[Row], rows: list[Row], folder: Path) -> None:
    print(f"\n{title}")
    print(format_table([*paper, *rows], ERROR_COLUMNS))
    for row in rows:
        if "drawdown_ratio" in row:
            ratio = row["drawdown_ratio"]
            interval = f"95% interval {ratio['low']:.2f}-{ratio['high']:.2f}"
            print(f"Drawdown of {row['name']} / {ratio['to']}: {ratio['mean']:.2f} ({interval})")
    print(f"\nResults: {folder / 'results.json'}; every edit: {folder}/edits-*/edits.jsonl")
