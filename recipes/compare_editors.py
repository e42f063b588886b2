"""Section 4.1: which editor, on which layers? Tables 1 and 2.

    python recipes/compare_editors.py --config recipes/configs/compare_editors/demo.yaml
    python recipes/compare_editors.py --config recipes/configs/compare_editors/small.yaml \
        --data path/to/cifar10 --weights resnet20-12fca82f.th

For every editor and every choice of layers, hyperparameters are tuned on held-out images for the smallest drawdown
with at least 95% success; then edits of test images are measured on the whole test set. A killed run continues. Once
the model is there, several processes can share the work (`--editors`); all studies are in one SQLite file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from editable_hf.core.editors import EDITORS
from editable_hf.experiments.compare_recipe import CompareConfig, load_config
from editable_hf.experiments.compare_stages import cells, evaluate, num_edits, train, tune
from editable_hf.experiments.image_parts import ImageSets, load_images
from editable_hf.experiments.paper_tables import TABLE_1, TABLE_2
from editable_hf.experiments.plots import plot_intervals, plots_available
from editable_hf.experiments.recipe_config import read_config, recipe_parser
from editable_hf.experiments.report import ERROR_COLUMNS, format_table, write_results
from editable_hf.experiments.stages import Stages


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
    parser = recipe_parser(__doc__)
    parser.add_argument("--weights", help="checkpoint folder, hub id or published .th file, instead of the config's")
    parser.add_argument("--editors", nargs="+", choices=list(EDITORS), help="only these of the config's editors")
    args = vars(parser.parse_args())
    editors = args.pop("editors")
    config = read_config(parser, load_config, args)
    if editors is not None and not set(editors) & set(config.cells):
        parser.error(f"--editors: {args['config']} has cells for {', '.join(config.cells)}, not for {editors}.")
    return config, editors


if __name__ == "__main__":
    main(*parse_args())
