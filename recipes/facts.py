"""Facts of a decoder-only language model, edited: one at a time, many at once, and many in a row.

    python recipes/facts.py --config recipes/configs/facts/demo.yaml
    accelerate launch recipes/facts.py --config recipes/configs/facts/smollm2.yaml --data FOLDER --weights MODEL

Stages: a pretrained model (a small one that learns the made-up facts that come with the package, or one that is
given), edit requests, networks that are trained further, with and without Editable Training, then each row of the
table. Each leaves a folder in the output folder and is skipped when it is there and its inputs are unchanged; a killed
run continues where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from editable_hf.experiments.fact_plots import plot_many_edits
from editable_hf.experiments.fact_recipe import FactRecipeConfig, load_config
from editable_hf.experiments.fact_stages import load_fact_sets, measure_row, prepare_requests, pretrain, train_network
from editable_hf.experiments.plots import plots_available
from editable_hf.experiments.recipe_config import folder_name, read_config, recipe_parser
from editable_hf.experiments.report import FACT_COLUMNS, MANY_FACTS_COLUMNS, format_table, write_results
from editable_hf.experiments.stages import Stage, Stages

TABLES = {"at_once": "Several edits at once", "in_a_row": "Edits in a row, each of what the one before left"}


def main(config: FactRecipeConfig) -> None:
    stages, sets = Stages(config.output_dir), load_fact_sets(config)
    shared = {"data": asdict(config.data), "seed": config.seed}
    inputs = {**shared, "model": asdict(config.model), "training": {**config.training, **config.pretrain}}
    pretrained = stages.run("pretrained", inputs, [], partial(pretrain, config, sets), every_process=True)
    inputs = {**shared, **asdict(config.requests)}
    requests = stages.run("requests", inputs, [pretrained], partial(prepare_requests, config, sets, pretrained))
    networks = {"pretrained": pretrained}
    for name, changes in config.models.items():
        options, edits = {**config.training, **changes}, changes.get("edits", False)
        options.pop("edits", None)
        inputs, after = {**shared, "training": options, "edits": edits}, [pretrained, *([requests] if edits else [])]
        build = partial(train_network, config, sets, pretrained, requests, options, edits)
        networks[name] = stages.run(f"network-{folder_name(name)}", inputs, after, build, every_process=True)
    measured = {}
    for name, options in config.rows.items():
        inputs = {**shared, "row": asdict(options), "evaluation": asdict(config.evaluation)}
        network = networks[options.network]
        build = partial(measure_row, config, sets, requests, network, name)
        after = [network, requests]
        measured[name] = stages.run(f"edits-{folder_name(name)}", inputs, after, build, every_process=True)
    if stages.state.is_main_process:
        report(config, measured, stages.output_dir)


def report(config: FactRecipeConfig, measured: dict[str, Stage], folder: Path) -> None:
    rows = [_read(stage.folder / "row.json") for stage in measured.values()]
    many = {
        key: [row for stage in measured.values() for row in _read(stage.folder / f"{key}.json", [])] for key in TABLES
    }
    source = config.data.test if config.data.test else "the made-up facts of the package"
    name = f"{rows[0]['num_edits']} edits, {source}"
    write_results(folder / "results.json", rows, asdict(config), config.seed, test_name=name, **many)
    print(f"\nOne edit at a time, {rows[0]['num_edits']} edits\n{format_table(rows, FACT_COLUMNS)}")
    for key, title in TABLES.items():
        if many[key]:
            print(f"\n{title}\n{format_table(many[key], MANY_FACTS_COLUMNS)}")
            if plots_available():
                plot_many_edits(many[key], folder / f"{key}.png", title)
    print(f"\nResults: {folder / 'results.json'}; every edit: {folder}/edits-*/edits.jsonl")


def _read(path: Path, default: Any = None) -> Any:
    return default if default is not None and not path.exists() else json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    parser = recipe_parser(__doc__)
    parser.add_argument("--weights", help="folder or hub id of the language model, instead of the config's")
    main(read_config(parser, load_config, vars(parser.parse_args())))
