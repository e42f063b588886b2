"""What the stages of natural_adversarial.py do beyond those of the other image recipes (section 4.3.1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import PartialState
from datasets import Dataset
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import AutoModel, PreTrainedModel

from editable_hf.core.functional import eval_mode
from editable_hf.data.image_requests import ImageEditRequests, RankDistribution
from editable_hf.data.image_transforms import with_pixels
from editable_hf.data.images import load_natural_adversarial
from editable_hf.evaluation.generalization import (
    evaluate_generalization,
    head_embedding,
    nearest_images,
    pooled_embedding,
    summarize_generalization,
)
from editable_hf.evaluation.sequences import evaluate_sequences, summarize_sequences
from editable_hf.experiments.image_measure import EditSets, chosen_editor, load_network, row_evaluator
from editable_hf.experiments.image_parts import ImageSets
from editable_hf.experiments.image_recipe import ADVERSARIAL, RANKS, ImageRecipeConfig
from editable_hf.experiments.image_stages import Rows, TrainingRequests
from editable_hf.experiments.plots import plot_ranks, plots_available
from editable_hf.experiments.recipe_config import folder_name
from editable_hf.experiments.row_methods import Row
from editable_hf.experiments.stages import Stage, Stages

MISTAKES = "mistakes"


class Examples(NamedTuple):
    """Natural adversarial examples, or what stands for them.

    Attributes:
        plain: Gives `pixel_values` and `labels`.
        augmented: The same images with training's augmentation.
        train: Indices of those that networks may be trained on.
        tuning: Indices of those that alpha is chosen with.
        evaluation: Indices of those that are reported on. No index is in two of the three.
        train_ranks: Of the true classes of `train`, under the starting network.
        stage: The stage that chose and ranked them.
    """

    plain: Dataset
    augmented: Dataset
    train: list[int]
    tuning: list[int]
    evaluation: list[int]
    train_ranks: RankDistribution
    stage: Stage


def prepare_examples(config: ImageRecipeConfig, stages: Stages, images: ImageSets, start: Stage) -> Examples:
    """Finds the examples, divides them, and ranks their true classes under the starting network."""
    options = config.adversarial
    source = images.validation
    if options.source != MISTAKES:
        source = with_pixels(load_natural_adversarial(options.source, images.class_ids), images.plain)
    inputs = {"source": options.source, "num_evaluation": options.num_evaluation, "seed": config.seed}
    inputs["num_tuning"] = config.evaluation.num_validation_edits
    stage = stages.run("examples", inputs, [start], partial(_choose_examples, config, images, source, start))
    content = json.loads((stage.folder / "examples.json").read_text(encoding="utf-8"))
    return Examples(
        plain=source.select(content["rows"]),
        augmented=with_pixels(source.with_format(None), images.augment).select(content["rows"]),
        train=content["train"],
        tuning=content["tuning"],
        evaluation=content["evaluation"],
        train_ranks=RankDistribution(torch.tensor(content["train_counts"])),
        stage=stage,
    )


def _choose_examples(
    config: ImageRecipeConfig, images: ImageSets, source: Dataset, start: Stage, folder: Path
) -> None:
    options = config.adversarial
    logits = _logits(load_network(start, images), source, config)
    labels = torch.tensor(source.with_format(None)["label"])
    rows = torch.arange(len(labels))
    if options.source == MISTAKES:
        rows = rows[logits.argmax(1) != labels]
    if len(rows) < 4:
        raise ValueError(
            f"Expected at least 4 examples, to train with, to choose alpha with and to edit, but {options.source!r} "
            f"has {len(rows)}; hold out more validation images, or give a folder of natural adversarial examples."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(config.seed)).tolist()
    first = min(options.num_evaluation, len(rows) // 2)
    second = first + min(config.evaluation.num_validation_edits, (len(rows) - first) // 2)
    evaluation, tuning, train = (sorted(part) for part in (order[:first], order[first:second], order[second:]))
    ranks, train_ranks = (RankDistribution.of(logits[each], labels[each]) for each in (rows, rows[train]))
    content = {
        "rows": rows.tolist(),
        "train": train,
        "tuning": tuning,
        "evaluation": evaluation,
        "counts": ranks.counts.tolist(),
    }
    content |= {"train_counts": train_ranks.counts.tolist(), "top_100": float(ranks.frequencies[:100].sum())}
    (folder / "examples.json").write_text(json.dumps(content), encoding="utf-8")
    if plots_available():
        plot_ranks(ranks.counts, folder / "ranks.png", f"{len(rows)} examples under the starting network")


def _logits(model: PreTrainedModel, dataset: Dataset, config: ImageRecipeConfig) -> Tensor:
    options = config.evaluation
    loader = DataLoader(dataset, batch_size=options.batch_size, num_workers=options.num_workers)
    with eval_mode(model), torch.no_grad():
        batches = [
            model(pixel_values=batch["pixel_values"].to(model.device, model.dtype)).logits.cpu()
            for batch in tqdm(loader, desc="examples", unit="batch")
        ]
    return torch.cat(batches)


def example_edits(config: ImageRecipeConfig, examples: Examples) -> EditSets:
    """Edits of the examples to their true classes."""
    labels = examples.plain.with_format(None)["label"]

    def requests(indices: list[int]) -> Dataset:
        classes = [labels[index] for index in indices]
        columns = {"id": list(range(len(indices))), "image_index": indices, "label": classes, "target": classes}
        return Dataset.from_dict(columns)

    evaluation = requests(examples.evaluation[: config.evaluation.num_edits])
    return EditSets(evaluation, examples.plain, requests(examples.tuning), examples.plain, examples.stage)


def example_training_requests(config: ImageRecipeConfig, images: ImageSets, examples: Examples) -> dict:
    """ "Match Ranks": training images with classes at the examples' ranks. "Train on NAE": the examples themselves."""
    train = examples.augmented.select(examples.train)
    labels = train.with_format(None)["label"]
    listed = Dataset.from_dict({"image_index": list(range(len(labels))), "target": labels})
    requests = {
        RANKS: ImageEditRequests(images.train, ranks=examples.train_ranks, seed=config.seed),
        ADVERSARIAL: ImageEditRequests(train, requests=listed),
    }
    return {name: TrainingRequests(each, examples.stage) for name, each in requests.items()}


def measure_sequences(
    config: ImageRecipeConfig, stages: Stages, images: ImageSets, edits: EditSets, rows: Rows
) -> list[Row]:
    """Several edits in a row, several times, for each of `sequence_rows`."""
    options = config.adversarial
    inputs = {"length": options.sequence_length, "runs": options.sequence_runs}
    measure = partial(_measure_sequences, config, images, edits)
    return _measured_rows("sequences", config, stages, rows, options.sequence_rows, inputs, [edits.stage], measure)


def _measured_rows(
    kind: str,
    config: ImageRecipeConfig,
    stages: Stages,
    rows: Rows,
    names: list[str],
    inputs: dict,
    after: list[Stage],
    measure: Callable[[Row, Stage, Path], None],
) -> list[Row]:
    """What a measure leaves in `row.json` for each of these rows; with --rows not all may be there."""
    found = []
    for name in filter(rows.table.get, names):
        row, network = rows.table[name], rows.networks[name]
        own = {**inputs, "seed": config.seed, "max_steps": config.evaluation.max_steps, "name": name}
        own["editor"] = [row["editor"], row["hyperparameters"], row["layers"]]
        folder, build = f"{kind}-{folder_name(name)}", partial(measure, row, network)
        stage = stages.run(folder, own, [network, *after], build, every_process=True)
        found.append(json.loads((stage.folder / "row.json").read_text(encoding="utf-8")))
    return found


def _measure_sequences(
    config: ImageRecipeConfig, images: ImageSets, edits: EditSets, row: Row, network: Stage, folder: Path
) -> None:
    model, layers = load_network(network, images), row["layers"].split(",")
    evaluator = row_evaluator(config, model, layers, images.test, edits.test_images)
    runs = evaluate_sequences(
        evaluator,
        list(edits.test),
        chosen_editor(row),
        num_edits=min(config.adversarial.sequence_length, len(edits.test)),
        num_runs=config.adversarial.sequence_runs,
        max_steps=config.evaluation.max_steps,
        seed=config.seed,
        path=folder / "runs.jsonl",
        progress=f"sequences, {row['name']}",
    )
    _write_row(folder, summarize_sequences(row["name"], runs))


def measure_generalization(
    config: ImageRecipeConfig, stages: Stages, images: ImageSets, examples: Examples, edits: EditSets, rows: Rows
) -> list[Row]:
    """How often the nearest test image of an edited example gets the class too, for `generalization_rows`."""
    options, start = config.adversarial, rows.start
    if not options.generalization_rows:
        return []
    nearest = stages.run(
        "neighbors",
        {"embedding": options.embedding, "data": asdict(config.data)},
        [start, examples.stage],
        partial(_find_neighbors, config, images, examples, start),
    )
    inputs, after = {"num_augmentations": options.num_augmentations}, [edits.stage, nearest]
    measure = partial(_measure_generalization, config, images, examples, edits, nearest)
    return _measured_rows("generalization", config, stages, rows, options.generalization_rows, inputs, after, measure)


def _find_neighbors(
    config: ImageRecipeConfig, images: ImageSets, examples: Examples, start: Stage, folder: Path
) -> None:
    name = config.adversarial.embedding
    if name is None:
        embed = head_embedding(load_network(start, images))
    else:
        embed = pooled_embedding(AutoModel.from_pretrained(name).to(load_network(start, images).device))
    nearest = nearest_images(examples.plain, images.test, embed, batch_size=config.evaluation.batch_size)
    (folder / "neighbors.json").write_text(json.dumps(nearest.tolist()), encoding="utf-8")


def _measure_generalization(
    config: ImageRecipeConfig,
    images: ImageSets,
    examples: Examples,
    edits: EditSets,
    nearest: Stage,
    row: Row,
    network: Stage,
    folder: Path,
) -> None:
    records = evaluate_generalization(
        load_network(network, images),
        edits.test,
        examples.augmented,
        images.test_augmented,
        json.loads((nearest.folder / "neighbors.json").read_text(encoding="utf-8")),
        chosen_editor(row),
        row["layers"].split(","),
        num_augmentations=config.adversarial.num_augmentations,
        max_steps=config.evaluation.max_steps,
        seed=config.seed,
        path=folder / "edits.jsonl",
        progress=f"generalization, {row['name']}",
    )
    _write_row(folder, summarize_generalization(row["name"], records))


def _write_row(folder: Path, row: Row) -> None:
    if PartialState().is_main_process:
        (folder / "row.json").write_text(json.dumps(row, indent=2), encoding="utf-8")
