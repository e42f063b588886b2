"""Terms of a glossary in a translation model: edited for, and everything else one could do, side by side.

    python recipes/terms.py --config recipes/configs/terms/demo.yaml
    python recipes/terms.py --config recipes/configs/terms/multi30k.yaml --data FOLDER

Stages: data, tokenizer, a pretrained model, the terms with their sentences, networks that are trained further, with
and without Editable Training, then each row of the table. Each leaves a folder in the output folder and is skipped
when it is there and its inputs are unchanged; a killed run continues where it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from editable_hf.data.translation import describe_source
from editable_hf.experiments.plots import plot_beside_paper, plots_available
from editable_hf.experiments.recipe_config import folder_name, read_config, recipe_parser
from editable_hf.experiments.report import MANY_TERMS_COLUMNS, TERM_COLUMNS, format_table, write_results
from editable_hf.experiments.stages import Stage, Stages
from editable_hf.experiments.term_recipe import TermRecipeConfig, load_config
from editable_hf.experiments.term_stages import measure_row, prepare_data, prepare_terms
from editable_hf.experiments.translation_stages import prepare_tokenizer, train_model
from editable_hf.terms.glossary import read_glossary

DRAWN = {"unseen_right": "term right in unseen sentences (%)", "outputs_changed": "other sentences changed (%)"}


def main(config: TermRecipeConfig) -> None:
    stages = Stages(config.output_dir)
    source = {**asdict(config.data), **describe_source(config.data.source), "kept": config.terms.num_sentences}
    data = stages.run("data", source, [], partial(prepare_data, config))
    options = {**asdict(config.tokenizer), "max_length": config.model.max_length}
    parts = [data, stages.run("tokenizer", options, [data], partial(prepare_tokenizer, config, data))]

    def train(name: str, options: dict, start: Stage | None = None, requests: Stage | None = None) -> Stage:
        inputs = {"model": asdict(config.model), "seed": config.seed, "num_beams": config.evaluation.num_beams}
        inputs["training"] = {**config.training, **options}
        inputs["requests"] = None if requests is None else requests.folder.name
        after = [stage for stage in (*parts, start, requests) if stage is not None]
        build = partial(train_model, config, parts, start, requests, inputs["training"])
        return stages.run(name, inputs, after, build, every_process=True)

    networks = {"pretrained": train("pretrained", config.pretrain)}
    options = {**asdict(config.terms), "glossary": read_glossary(config.terms.glossary).terms, "seed": config.seed}
    after = [data, networks["pretrained"]]
    terms = stages.run("terms", options, after, partial(prepare_terms, config, *after))
    for name, changes in config.models.items():
        options = {key: value for key, value in changes.items() if key != "requests"}
        kind = changes.get("requests")
        requests = terms._replace(folder=terms.folder / kind) if kind else None
        networks[name] = train(f"network-{folder_name(name)}", options, networks["pretrained"], requests)
    measured = {}
    for name, options in config.rows.items():
        inputs = {"row": asdict(options), "evaluation": asdict(config.evaluation)}
        inputs["num_alternatives"] = config.terms.num_alternatives
        network = networks[options.network]
        build = partial(measure_row, config, data, terms, network, name)
        measured[name] = stages.run(f"row-{folder_name(name)}", inputs, [data, terms, network], build)
    if stages.state.is_main_process:
        report(config, data, measured, stages.output_dir)


def report(config: TermRecipeConfig, data: Stage, measured: dict[str, Stage], folder: Path) -> None:
    rows, at_once = (
        [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        for paths in ([stage.folder / name for stage in measured.values()] for name in ("row.json", "at_once.json"))
    )
    names = json.loads((data.folder / "names.json").read_text(encoding="utf-8"))
    write_results(folder / "results.json", rows, asdict(config), config.seed, **names, at_once=at_once)
    print(f"\nOne term at a time, {rows[0]['num_terms']} terms\n{format_table(rows, TERM_COLUMNS)}")
    if at_once:
        print(f"\n{at_once[0]['num_terms']} terms at once\n{format_table(at_once, MANY_TERMS_COLUMNS)}")
    if plots_available():
        for key, label in DRAWN.items():
            plot_beside_paper(rows, key, folder / f"{key}.png", label, 100)
    print(f"\nResults: {folder / 'results.json'}; every term: {folder}/row-*/terms.jsonl")


if __name__ == "__main__":
    parser = recipe_parser(__doc__)
    main(read_config(parser, load_config, vars(parser.parse_args())))
