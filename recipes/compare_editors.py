"""Section 4.1: which editor, on which layers? Tables 1 and 2.

    python recipes/compare_editors.py --config recipes/configs/compare_editors/demo.yaml
    python recipes/compare_editors.py --config recipes/configs/compare_editors/small.yaml \
        --data path/to/cifar10 --weights resnet20-12fca82f.th

For every editor and every choice of layers, hyperparameters are tuned on held-out images for the smallest drawdown
with at least 95% success; then edits of test images are measured on the whole test set. A killed run continues. Once
the model is there, several processes can share the work (`--editors`); all studies are in one SQLite file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from editable_hf import EditableImageTrainer, EditableImageTrainingArguments
from editable_hf.core.editors import EDITORS, Editor, LearnableEditor
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_edits import ErrorDrawdownEvaluator
from editable_hf.experiments.compare_recipe import CompareConfig, load_config
from editable_hf.experiments.image_parts import ImageModelOptions, ImageSets, load_classifier, load_images
from editable_hf.experiments.paper_tables import TABLE_1, TABLE_2
from editable_hf.experiments.plots import plot_intervals, plots_available
from editable_hf.experiments.report import ERROR_COLUMNS, format_table, write_results
from editable_hf.experiments.stages import Stage, Stages
from editable_hf.experiments.tuning import TunedEditor, tune_editor
from editable_hf.training.checkpoints import last_whole_checkpoint


def main(config: CompareConfig, editors: list[str] | None = None) -> None:
    stages = Stages(config.output_dir, shared=editors is not None)
    images = load_images(config.data, config.seed)
    common = {"data": asdict(config.data), "model": asdict(config.model), "seed": config.seed}
    build = partial(train, config, images)
    trained = stages.run("model", {**common, "training": config.training}, [], build, every_process=True)
    rows = []
    for editor, layers in cells(
        {name: value for name, value in config.cells.items() if editors is None or name in editors}
    ):
        with stages.claimed(f"tuning-{editor}-{layers}"):
            tuned = tune(config, images, trained, editor, layers)._asdict()
        build = partial(evaluate, config, images, trained, tuned, editor, layers)
        inputs = {**asdict(config.evaluation), "num_edits": num_edits(config, layers), "num_edits_by_layers": None}
        inputs["hyperparameters"] = tuned["hyperparameters"]
        cell = stages.run(f"edits-{editor}-{layers}", inputs, [trained], build, every_process=True)
        rows.append(json.loads((cell.folder / "row.json").read_text(encoding="utf-8")))
    if stages.state.is_main_process:
        report(config, images, rows, Path(config.output_dir))


def cells(choices: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Editors and layers: first the first choice of each editor, so that a table of all editors is there early."""
    places = range(max(map(len, choices.values())))
    return [(editor, layers[place]) for place in places for editor, layers in choices.items() if place < len(layers)]


def num_edits(config: CompareConfig, layers: str) -> int:
    return config.evaluation.num_edits_by_layers.get(layers, config.evaluation.num_edits)


def train(config: CompareConfig, images: ImageSets, folder: Path) -> None:
    """Trains the classifier by the plain task loss; one that has weights is kept as it is."""
    set_seed(config.seed)
    model = load_classifier(config.model, images.num_classes)
    if config.model.weights is None:
        args = EditableImageTrainingArguments(str(folder / "checkpoints"), seed=config.seed, **config.training)
        trainer = EditableImageTrainer(model, args, train_dataset=images.train, eval_dataset=images.validation)
        trainer.train(resume_from_checkpoint=last_whole_checkpoint(args.output_dir))
    if PartialState().is_main_process:
        model.save_pretrained(folder)


def load(trained: Stage, images: ImageSets):
    options = ImageModelOptions(weights=str(trained.folder))
    return load_classifier(options, images.num_classes).to(PartialState().device)


def tune(config: CompareConfig, images: ImageSets, trained: Stage, editor: str, layers: str) -> TunedEditor:
    """On validation images: neither these nor the edits are reported on."""
    options, max_steps = config.tuning, config.evaluation.max_steps

    @cache
    def prepare():
        scored = images.validation.select(range(min(options.num_images, len(images.validation))))
        labels = images.validation.with_format(None)["label"]
        count = min(options.num_edits, len(labels))
        requests = make_image_requests(len(labels), labels, images.num_classes, count, config.seed + 1)
        return ErrorDrawdownEvaluator(load(trained, images), scored, images.validation, layers=layers), requests

    def measure(built: Editor) -> dict:
        evaluator, requests = prepare()
        return evaluator.summarize(editor, evaluator.evaluate(requests, built, max_steps=max_steps, progress=None))

    content = json.dumps([trained.fingerprint, options.num_edits, options.num_images, max_steps, config.seed])
    print(f"[tuning of {editor} on {layers}]", flush=True)
    return tune_editor(
        measure,
        editor,
        storage=Path(config.output_dir, "studies.db"),
        study_name=f"{editor}-{layers}-{hashlib.sha256(content.encode()).hexdigest()[:12]}",
        num_trials=options.num_trials,
        min_success_rate=options.min_success_rate,
        seed=config.seed,
    )


def evaluate(
    config: CompareConfig, images: ImageSets, trained: Stage, tuned: dict, editor: str, layers: str, folder: Path
) -> None:
    options = config.evaluation
    evaluator = ErrorDrawdownEvaluator(
        load(trained, images), images.test, layers=layers, batch_size=options.batch_size
    )
    labels = evaluator.labels.tolist()
    count = min(num_edits(config, layers), len(labels))
    # The same first requests for every cell, whatever its number of edits.
    total = min(max(options.num_edits, *options.num_edits_by_layers.values(), count), len(labels))
    requests = make_image_requests(len(labels), labels, images.num_classes, total, config.seed).select(range(count))
    built = LearnableEditor(editor, False, False, **tuned["hyperparameters"]).build()
    records = evaluator.evaluate(
        requests, built, max_steps=options.max_steps, path=folder / "edits.jsonl", progress=f"{editor}, {layers}"
    )
    row = evaluator.summarize(editor, records, layers=layers, tuned=tuned)
    if PartialState().is_main_process:
        (folder / "row.json").write_text(json.dumps(row, indent=2), encoding="utf-8")


def report(config: CompareConfig, images: ImageSets, rows: list[dict], folder: Path) -> None:
    """Table 1: each editor with the layers that gave it the least drawdown in tuning. Table 2: all layers."""
    best = [
        min((row for row in rows if row["name"] == name), key=lambda row: row["tuned"]["drawdown"])
        for name in dict.fromkeys(row["name"] for row in rows)
    ]
    print(f"\nTable 1. Ours: {images.test_name}. Paper: CIFAR-10, ResNet-18.")
    print(format_table([*TABLE_1, *best], ERROR_COLUMNS))
    print("\nTable 2: all layers. Paper: " + "; ".join(f"{name} {values}" for name, values in TABLE_2.items()))
    print(format_table(rows, ERROR_COLUMNS))
    write_results(folder / "results.json", rows, asdict(config), config.seed, test_name=images.test_name)
    if plots_available():
        plot_intervals(rows, folder / "drawdown.png", images.test_name)
    print(f"\nResults: {folder / 'results.json'}; every edit: {folder}/edits-*/edits.jsonl")


def parse_args() -> tuple[CompareConfig, list[str] | None]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, see recipes/configs/compare_editors/")
    parser.add_argument("--output_dir", help="output folder, instead of the config's")
    parser.add_argument("--data", help="folder with the data, instead of the config's")
    parser.add_argument("--weights", help="checkpoint folder, hub id or published .th file, instead of the config's")
    parser.add_argument("--seed", type=int, help="seed of everything, instead of the config's")
    parser.add_argument("--editors", nargs="+", choices=list(EDITORS), help="only these of the config's editors")
    parser.add_argument("--smoke", action="store_true", help="the same stages in seconds, with meaningless numbers")
    args = vars(parser.parse_args())
    editors = args.pop("editors")
    try:
        config = load_config(**args)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if editors is not None and not set(editors) & set(config.cells):
        parser.error(f"--editors: {args['config']} has cells for {', '.join(config.cells)}, not for {editors}.")
    return config, editors


if __name__ == "__main__":
    main(*parse_args())
