"""Figure 2 of some rows of a table: drawdown by class, the space of edits, and how many dimensions explain it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from datasets import Dataset
from torch import Tensor

from editable_hf.data.image_requests import make_image_requests
from editable_hf.experiments.edit_space import (
    EditSpace,
    describe_edits,
    drawdown_by_class,
    embed_edits,
    explained_variance,
    own_class_ratio,
)
from editable_hf.experiments.image_measure import chosen_editor, load_network, row_evaluator
from editable_hf.experiments.image_parts import ImageSets
from editable_hf.experiments.image_recipe import ImageRecipeConfig
from editable_hf.experiments.image_stages import Rows
from editable_hf.experiments.plots import (
    plot_drawdown_by_class,
    plot_edit_space,
    plot_explained_variance,
    plots_available,
)
from editable_hf.experiments.recipe_config import folder_name
from editable_hf.experiments.report import format_table, write_results
from editable_hf.experiments.stages import Stages

COLUMNS = {
    "name": ("", "{}"),
    "num_edits": ("edits", "{}"),
    "own_class_ratio": ("own class / others", "{:.2f}"),
    "components_50": ("components for 50%", "{}"),
    "components_90": ("for 90%", "{}"),
    "explained": ("explained by all", "{:.1%}"),
}


def make_figure_2(config: ImageRecipeConfig, stages: Stages, images: ImageSets, rows: Rows) -> None:
    """Describes edits of the rows that the file names, with the editor that each was measured with, and draws them.

    With `--rows` only of those; the figure is drawn once all of its rows are described.
    """
    asked, folders = config.rows or list(config.models), {}
    for name in filter(rows.table.get, config.figure_2.rows):
        options, row = config.models[name], rows.table[name]
        inputs = {"num_edits": config.figure_2.num_edits, "max_steps": config.evaluation.max_steps}
        inputs |= {"layers": options.layers, "hyperparameters": row["hyperparameters"], "editor": row["editor"]}
        build = partial(_describe, config, images, rows, name)
        folder, after = f"figure_2-{folder_name(name)}", [rows.networks[name]]
        stage = rows.stage(name in asked, folder, inputs, after, build, every_process=True)
        if stage is not None:
            folders[name] = stage.folder
    missing = [name for name in config.figure_2.rows if name not in folders]
    if missing:
        stages.state.print(f"Figure 2 waits for these rows: {', '.join(missing)}")
    elif folders:
        described = {name: _describe(config, images, rows, name, folder) for name, folder in folders.items()}
        if stages.state.is_main_process:
            _report(described, list(images.class_ids), config, stages.output_dir)


def _describe(
    config: ImageRecipeConfig, images: ImageSets, rows: Rows, name: str, folder: Path
) -> tuple[EditSpace, Tensor]:
    model, layers = load_network(rows.networks[name], images), config.models[name].layers
    evaluator = row_evaluator(config, model, layers, images.test, images.test)
    labels, count = evaluator.labels, min(config.figure_2.num_edits, evaluator.num_images)
    requests = make_image_requests(labels.tolist(), images.num_classes, count, config.seed + 2)
    editor, max_steps = chosen_editor(rows.table[name]), config.evaluation.max_steps
    space = describe_edits(evaluator, requests, editor, max_steps=max_steps, folder=folder, progress=name)
    matrix = drawdown_by_class(space.predictions, evaluator.before, labels, space.labels, images.num_classes)
    return space, matrix


def _report(
    described: Mapping[str, tuple[EditSpace, Tensor]],
    classes: list[str],
    config: ImageRecipeConfig,
    folder: Path,
) -> None:
    spaces = {name: space for name, (space, _) in described.items()}
    matrices = {name: matrix for name, (_, matrix) in described.items()}
    few = min(len(space.labels) for space in spaces.values())
    options = {"perplexity": min(30.0, max(1.0, few / 4)), "seed": config.seed}
    points = {name: embed_edits(space.divergences, **options) for name, space in spaces.items()}
    curves = {name: explained_variance(space.divergences, seed=config.seed) for name, space in spaces.items()}
    tables = {"edit_space": [], "drawdown_by_class": [], "explained_variance": []}
    for name, space in spaces.items():
        places = zip(space.labels.tolist(), space.targets.tolist(), points[name].tolist(), strict=True)
        tables["edit_space"] += [
            {"model": name, "class": classes[label], "target": classes[target], "x": x, "y": y}
            for label, target, (x, y) in places
        ]
        tables["drawdown_by_class"] += [
            {"model": name, "edited_class": edited, "test_class": tested, "drawdown": value}
            for edited, values in zip(classes, matrices[name].tolist(), strict=True)
            for tested, value in zip(classes, values, strict=True)
        ]
        tables["explained_variance"] += [
            {"model": name, "components": count, "explained": value}
            for count, value in enumerate(curves[name].tolist(), start=1)
        ]
    for table, entries in tables.items():
        Dataset.from_list(entries).to_parquet(folder / f"{table}.parquet")
    if plots_available():
        plot_drawdown_by_class(matrices, classes, folder / "drawdown_by_class.png")
        plot_edit_space(
            {name: (points[name], space) for name, space in spaces.items()}, classes, folder / "edit_space.png"
        )
        plot_explained_variance(curves, folder / "explained_variance.png")
    summary = [
        {
            "name": name,
            "num_edits": len(space.labels),
            "own_class_ratio": own_class_ratio(matrices[name]),
            "components_50": _components(curves[name], 0.5),
            "components_90": _components(curves[name], 0.9),
            "explained": curves[name][-1].item(),
        }
        for name, space in spaces.items()
    ]
    write_results(folder / "figure_2.json", summary, asdict(config), config.seed)
    print(f"\nFigure 2. Edits that took a step, and the drawdown they cause.\n{format_table(summary, COLUMNS)}")
    print(f"\nPictures and their data: {folder}/{{{','.join(tables)}}}.{{png,parquet}}, figure_2.json")


def _components(curve: Tensor, share: float) -> int | str:
    """How many components explain that share of the variance."""
    count = int((curve < share).sum()) + 1
    return count if count <= len(curve) else f"> {len(curve)}"
