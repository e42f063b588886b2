"""Section 4.4: an editable German-English Transformer, from text to Table 6.

    accelerate launch recipes/iwslt_de_en.py --config recipes/configs/demo.yaml
    accelerate launch recipes/iwslt_de_en.py --config recipes/configs/paper.yaml --data path/to/iwslt14

Stages: data, tokenizer, pretrained model, edit requests, baseline and editable model (both continue the pretrained one
for equally many updates), evaluation. Each leaves a folder in the output folder and is skipped when it is there and
its inputs are unchanged; a killed run continues where it was.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from accelerate import PartialState
from datasets import DatasetDict, load_from_disk
from recipe_config import RecipeConfig, load_config
from transformers import AutoTokenizer, MarianMTModel, set_seed
from transformers.trainer_utils import get_last_checkpoint

from editable_hf import EditableSeq2SeqTrainer, EditableSeq2SeqTrainingArguments, EditorConfig
from editable_hf.data.requests import make_edit_requests
from editable_hf.data.tokenizer import train_tokenizer
from editable_hf.data.translation import describe_source, load_translation_data
from editable_hf.evaluation.edits import BleuDrawdownEvaluator
from editable_hf.evaluation.report import TABLE_6, format_table, write_results
from editable_hf.evaluation.showcase import format_showcase, showcase
from editable_hf.models import iwslt_transformer_config
from editable_hf.training.stages import Stage, Stages


def main(config: RecipeConfig) -> None:
    stages, state = Stages(config.output_dir), PartialState()
    data = stages.run("data", {**asdict(config.data), **describe_source(config.data.source)}, [], partial(prepare_data, config))
    tokenizer = stages.run("tokenizer", asdict(config.tokenizer), [data], partial(prepare_tokenizer, config, data))
    parts = [data, tokenizer]
    train = partial(stages.run, every_process=True)
    pretrained = train(
        "pretrained", {**asdict(config.model), **config.pretrain}, parts, partial(train_model, config, parts, None, None, config.pretrain)
    )
    requests = stages.run(
        "requests", asdict(config.requests), [*parts, pretrained], partial(prepare_requests, config, parts, pretrained)
    )
    baseline = train(
        "baseline", config.finetune, [*parts, pretrained], partial(train_model, config, parts, pretrained, None, config.finetune)
    )
    objective = {**config.finetune, **config.editable}
    editable = train(
        "editable", objective, [pretrained, requests], partial(train_model, config, parts, pretrained, requests, objective)
    )
    models = {"baseline": baseline, "editable": editable}
    results = stages.run(
        "evaluation", asdict(config.evaluation), [*models.values(), requests], partial(evaluate, config, parts, requests, models)
    )
    if state.is_main_process:
        print_results(results.folder, Path(config.output_dir))


def prepare_data(config: RecipeConfig, folder: Path) -> None:
    data = load_translation_data(**asdict(config.data))
    data.splits.save_to_disk(folder / "splits")
    (folder / "names.json").write_text(json.dumps({"name": data.name, "test_name": data.test_name}), encoding="utf-8")


def prepare_tokenizer(config: RecipeConfig, data: Stage, folder: Path) -> None:
    train = load_from_disk(data.folder / "splits")["train"]
    tokenizer = train_tokenizer(
        [*train["source"], *train["target"]], max_length=config.model.max_length, **asdict(config.tokenizer)
    )
    tokenizer.save_pretrained(folder)


def load_parts(parts: list[Stage]) -> tuple[DatasetDict, AutoTokenizer]:
    data, tokenizer = parts
    return load_from_disk(data.folder / "splits"), AutoTokenizer.from_pretrained(tokenizer.folder)


def train_model(
    config: RecipeConfig, parts: list[Stage], start: Stage | None, requests: Stage | None, options: dict, folder: Path
) -> None:
    splits, tokenizer = load_parts(parts)
    set_seed(config.seed)
    if start is None:
        model_config = iwslt_transformer_config(
            tokenizer, config.model.size, config.model.dropout, config.model.max_length
        )
        model = MarianMTModel(model_config)
        # The settings of section 4.4's evaluation become the model's own.
        model.generation_config.update(num_beams=config.evaluation.num_beams, early_stopping=True)
    else:
        model = MarianMTModel.from_pretrained(start.folder, attn_implementation="eager")
    columns = splits["train"].column_names
    encoded = splits.map(
        lambda row: tokenizer(row["source"], text_target=row["target"], truncation=True),
        batched=True,
        remove_columns=columns,
        desc="encoding",
    )
    args = EditableSeq2SeqTrainingArguments(str(folder / "checkpoints"), seed=config.seed, **{**config.training, **options})
    trainer = EditableSeq2SeqTrainer(
        model,
        args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        edit_dataset=None if requests is None else load_from_disk(requests.folder / "train"),
        processing_class=tokenizer,
    )
    checkpoints = Path(args.output_dir)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(checkpoints) if checkpoints.exists() else None)
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / "trainer_state.json"))


def prepare_requests(config: RecipeConfig, parts: list[Stage], pretrained: Stage, folder: Path) -> None:
    splits, tokenizer = load_parts(parts)
    model = MarianMTModel.from_pretrained(pretrained.folder, attn_implementation="eager")
    options = config.requests
    for split, count in (("train", options.num_train), ("test", options.num_test)):
        sources = splits[split].shuffle(seed=config.seed)["source"][:count]
        requests = make_edit_requests(
            model,
            tokenizer,
            sources,
            num_alternatives=options.num_alternatives,
            temperature=options.temperature,
            batch_size=options.batch_size,
            seed=config.seed,
        )
        requests.save_to_disk(folder / split)


def evaluate(config: RecipeConfig, parts: list[Stage], requests: Stage, models: dict[str, Stage], folder: Path) -> None:
    splits, tokenizer = load_parts(parts)
    options = config.evaluation
    test = splits["test"].select(range(min(options.num_sentences, len(splits["test"]))))
    edits = load_from_disk(requests.folder / "test")
    edits = edits.select(range(min(options.num_edits, len(edits))))
    rows = []
    for name, stage in models.items():
        model = MarianMTModel.from_pretrained(stage.folder, attn_implementation="eager").eval()
        editor_config = EditorConfig.from_pretrained(stage.folder)
        evaluator = BleuDrawdownEvaluator(
            model,
            tokenizer,
            test["source"],
            test["target"],
            test["target_text"],
            layers=editor_config.layers,
            num_beams=options.num_beams,
            batch_size=options.batch_size,
        )
        for alpha in options.learning_rates if name == "editable" else options.learning_rates[:1]:
            title = f"{name}, alpha={alpha:g}"
            editor = editor_config.build_editor(learning_rate=alpha)
            path = folder / f"edits-{name}-alpha{alpha:g}.jsonl"
            records = evaluator.evaluate(edits, editor, max_steps=options.max_steps, path=path, progress=title)
            extra = {"learning_rate": alpha, "editor": asdict(editor_config), "max_steps": options.max_steps}
            rows.append(evaluator.summarize(name if alpha == options.learning_rates[0] else title, records, **extra))
        if name == "editable":
            record = showcase(
                evaluator,
                test["source"],
                test["target"],
                editor_config.build_editor(learning_rate=options.learning_rates[0]),
                max_steps=options.max_steps,
                num_alternatives=config.requests.num_alternatives,
            )
            (folder / "showcase.json").write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
    names = json.loads((parts[0].folder / "names.json").read_text(encoding="utf-8"))
    write_results(folder / "results.json", rows, asdict(config), config.seed, **names)


def print_results(folder: Path, output_dir: Path) -> None:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    record = json.loads((folder / "showcase.json").read_text(encoding="utf-8"))
    print(f"\n{format_showcase(record)}\n\nTable 6. Ours: {results['test_name']}. Paper: IWSLT14 De-En, all of it.")
    print(format_table([*TABLE_6, *results["rows"]]))
    print(f"\nResults: {folder / 'results.json'}; every edit: {folder}/edits-*.jsonl")


def parse_args() -> RecipeConfig:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML file, see recipes/configs/")
    parser.add_argument("--output_dir", help="output folder, instead of the config's")
    parser.add_argument("--data", help="'embedded', a folder, a WIT3 archive or a hub id, instead of the config's")
    parser.add_argument("--seed", type=int, help="seed of everything, instead of the config's")
    parser.add_argument("--smoke", action="store_true", help="the same stages in a minute, with meaningless numbers")
    return load_config(**vars(parser.parse_args()))


if __name__ == "__main__":
    main(parse_args())
