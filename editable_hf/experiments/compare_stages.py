"""What the stages of compare_editors.py do: the classifier, the tuning of each editor, edits of test images."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed

from editable_hf import EditableImageTrainer, EditableImageTrainingArguments
from editable_hf.core.editors import Editor, LearnableEditor
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_edits import ErrorDrawdownEvaluator
from editable_hf.experiments.compare_recipe import CompareConfig
from editable_hf.experiments.image_measure import load_network
from editable_hf.experiments.image_parts import ImageSets, load_classifier
from editable_hf.experiments.stages import Stage
from editable_hf.experiments.tuning import TunedEditor, tune_editor
from editable_hf.training.checkpoints import last_whole_checkpoint


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


def tune(config: CompareConfig, images: ImageSets, trained: Stage, editor: str, layers: str) -> TunedEditor:
    """On validation images: neither these nor the edits are reported on."""
    options, max_steps = config.tuning, config.evaluation.max_steps

    @cache
    def prepare():
        scored = images.validation.select(range(min(options.num_images, len(images.validation))))
        labels = images.validation.with_format(None)["label"]
        count = min(options.num_edits, len(labels))
        requests = make_image_requests(len(labels), labels, images.num_classes, count, config.seed + 1)
        return ErrorDrawdownEvaluator(
            load_network(trained, images), scored, images.validation, layers=layers
        ), requests

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
        load_network(trained, images), images.test, layers=layers, batch_size=options.batch_size
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
