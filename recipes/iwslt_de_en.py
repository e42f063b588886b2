"""Section 4.4: an editable German-English Transformer, from text to Table 6.

    accelerate launch recipes/iwslt_de_en.py --config recipes/configs/iwslt_de_en/demo.yaml
    accelerate launch recipes/iwslt_de_en.py --config recipes/configs/iwslt_de_en/paper.yaml --data path/to/iwslt14

Stages: data, tokenizer, pretrained model, edit requests, baseline and editable models (all continue the pretrained one
for equally many updates), validation where the file asks for it, evaluation. Each leaves a folder in the output folder
and is skipped when it is there and its inputs are unchanged; a killed run continues where it was.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from editable_hf.data.translation import describe_source
from editable_hf.experiments.paper_tables import TABLE_6
from editable_hf.experiments.recipe_config import read_config, recipe_parser
from editable_hf.experiments.report import format_ratios, format_table
from editable_hf.experiments.showcase import format_showcase
from editable_hf.experiments.stages import Stage, Stages
from editable_hf.experiments.translation_recipe import RecipeConfig, load_config
from editable_hf.experiments.translation_stages import (
    evaluate,
    prepare_data,
    prepare_requests,
    prepare_tokenizer,
    train_model,
    validate,
    write_card,
)


def main(config: RecipeConfig) -> None:
    stages = Stages(config.output_dir)
    state = stages.state
    if state.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
        # accelerate's launcher gives a process on the CPU one thread unless it is told otherwise.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // state.num_processes))

    source = {**asdict(config.data), **describe_source(config.data.source)}
    data = stages.run("data", source, [], partial(prepare_data, config))
    options = {**asdict(config.tokenizer), "max_length": config.model.max_length}
    tokenizer = stages.run("tokenizer", options, [data], partial(prepare_tokenizer, config, data))
    parts = [data, tokenizer]

    def train(name: str, options: dict, start: Stage | None = None, requests: Stage | None = None) -> Stage:
        # `num_beams` is saved with the model, see `EvaluationOptions`.
        inputs = {"model": asdict(config.model), "seed": config.seed, "num_beams": config.evaluation.num_beams}
        inputs["training"] = {**config.training, **options}
        after = [stage for stage in (*parts, start, requests) if stage is not None]
        build = partial(train_model, config, parts, start, requests, inputs["training"])
        return stages.run(name, inputs, after, build, every_process=True)

    pretrained = train("pretrained", config.pretrain)
    # What refuses a model changes no request.
    options = {**asdict(config.requests), "seed": config.seed}
    del options["min_bleu"]
    build = partial(prepare_requests, config, parts, pretrained)
    requests = stages.run("requests", options, [*parts, pretrained], build, every_process=True)
    # A model trained longer has less drawdown by itself: the baseline gets exactly as many updates.
    models = {"baseline": train("baseline", config.finetune, pretrained)}
    variants = {"editable": {}, **{f"editable-{name}": changes for name, changes in config.variants.items()}}
    for name, changes in variants.items():
        models[name] = train(name, {**config.finetune, **config.editable, **changes}, pretrained, requests)
    after, validation = [*parts, requests, *models.values()], None
    if config.evaluation.num_validation_edits:
        build = partial(validate, config, parts, requests, models)
        validation = stages.run("validation", asdict(config.evaluation), after, build, every_process=True)
        if state.is_main_process:
            print_validation(validation.folder)
    build = partial(evaluate, config, parts, requests, models, validation)
    results = stages.run("evaluation", asdict(config.evaluation), after, build, every_process=True)
    if state.is_main_process:
        write_card(config, models, results.folder)
        print_results(results.folder)


def print_validation(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    print(f"\nOn validation sentences:\n{format_table(results['rows'])}\nChosen: {results['chosen']}")


def print_results(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "showcase.json").read_text(encoding="utf-8"))
    print(f"\n{format_showcase(record)}\n\nTable 6. Ours: {results['test_name']}. Paper: IWSLT14 De-En, all of it.")
    print(format_table([*TABLE_6, *results["rows"]]))
    print(*format_ratios(results["rows"]), sep="\n")
    print(f"\nResults: {folder / 'results.json'}; every edit: {folder}/edits-*.jsonl")


if __name__ == "__main__":
    parser = recipe_parser(__doc__)
    main(read_config(parser, load_config, vars(parser.parse_args())))
