"""What the stages of the translation recipe do, each filling one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from recipe_config import RecipeConfig
from transformers import AutoTokenizer, MarianMTModel, PreTrainedTokenizerBase, set_seed

from editable_hf import EditableSeq2SeqTrainer, EditableSeq2SeqTrainingArguments, EditorConfig, make_edit_requests
from editable_hf.analysis.plots import plot_drawdowns, plots_available
from editable_hf.data.requests import NoEditRequestsError
from editable_hf.data.tokenizer import train_tokenizer
from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.bleu_edits import BleuDrawdownEvaluator
from editable_hf.evaluation.bootstrap import bootstrap_ratio
from editable_hf.evaluation.report import write_results
from editable_hf.evaluation.showcase import showcase
from editable_hf.models import iwslt_transformer_config
from editable_hf.training.checkpoints import train_to
from editable_hf.training.stages import Stage

_CHUNK = 512  # edit requests in one file


def prepare_data(config: RecipeConfig, folder: Path) -> None:
    data = load_translation_data(**asdict(config.data))
    data.splits.save_to_disk(folder / "splits")
    (folder / "names.json").write_text(json.dumps({"name": data.name, "test_name": data.test_name}), encoding="utf-8")


def prepare_tokenizer(config: RecipeConfig, data: Stage, folder: Path) -> None:
    train = load_from_disk(data.folder / "splits")["train"]
    tokenizer = train_tokenizer(
        [*train["source"], *train["target"]],
        source_lang=config.data.source_lang,
        target_lang=config.data.target_lang,
        max_length=config.model.max_length,
        **asdict(config.tokenizer),
    )
    tokenizer.save_pretrained(folder)


def load_parts(parts: list[Stage]) -> tuple[DatasetDict, PreTrainedTokenizerBase]:
    data, tokenizer = parts
    return load_from_disk(data.folder / "splits"), AutoTokenizer.from_pretrained(tokenizer.folder)


def train_model(
    config: RecipeConfig,
    parts: list[Stage],
    start: Stage | None,
    requests: Stage | None,
    options: dict[str, Any],
    folder: Path,
) -> None:
    """Trains from `start`, or from nothing; with `requests` by Eq. 2, without them by the base loss alone."""
    splits, tokenizer = load_parts(parts)
    set_seed(config.seed)
    if start is None:
        model_config = iwslt_transformer_config(
            tokenizer, config.model.size, config.model.dropout, config.model.max_length
        )
        model = MarianMTModel(model_config)
    else:
        model = MarianMTModel.from_pretrained(start.folder, attn_implementation="eager")
    # The settings of section 4.4's evaluation become the model's own.
    beams = config.evaluation.num_beams
    model.generation_config.update(
        num_beams=beams,
        early_stopping=beams > 1,  # greedy decoding with it is refused when the model is saved
        max_new_tokens=config.model.max_length - 1,
    )
    columns = splits["train"].column_names
    encoded = splits.map(
        lambda row: tokenizer(row["source"], text_target=row["target"], truncation=True),
        batched=True,
        remove_columns=columns,
        desc="encoding",
    )
    args = EditableSeq2SeqTrainingArguments(str(folder / "checkpoints"), seed=config.seed, **options)
    trainer = EditableSeq2SeqTrainer(
        model,
        args,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        edit_dataset=None if requests is None else load_from_disk(requests.folder / "train"),
        processing_class=tokenizer,
    )
    train_to(trainer, folder)


def prepare_requests(config: RecipeConfig, parts: list[Stage], pretrained: Stage, folder: Path) -> None:
    """All processes share the chunks. One file a chunk, complete once it has its name: a kill costs one at most."""
    (splits, tokenizer), state = load_parts(parts), PartialState()
    model = MarianMTModel.from_pretrained(pretrained.folder, attn_implementation="eager").to(state.device)
    options = config.requests
    for split, count in (("train", options.num_train), ("test", options.num_test)):
        sources = splits[split].shuffle(seed=config.seed)["source"][:count]
        for start in range(0, len(sources), _CHUNK)[state.process_index :: state.num_processes]:
            title = f"{split} requests {start + 1}-{min(start + _CHUNK, len(sources))} of {len(sources)}"
            path = folder / f"{split}-{start:06d}.parquet"
            if path.exists():
                continue
            try:
                requests = make_edit_requests(
                    model,
                    tokenizer,
                    sources[start : start + _CHUNK],
                    num_alternatives=options.num_alternatives,
                    temperature=options.temperature,
                    batch_size=options.batch_size,
                    seed=config.seed + start,
                    first_id=start,
                    progress=title if state.is_main_process else None,
                )
            except NoEditRequestsError as error:
                none_at_all = error  # a short last chunk can well give none
                continue
            partial = path.with_suffix(".partial")
            requests.to_parquet(partial)
            partial.rename(path)
        state.wait_for_everyone()
        if state.is_main_process:
            chunks = sorted(folder.glob(f"{split}-*.parquet"))
            if not chunks:
                raise none_at_all  # the first chunk was this process's
            concatenate_datasets([Dataset.from_parquet(str(path)) for path in chunks]).save_to_disk(folder / split)


def evaluate(
    config: RecipeConfig, parts: list[Stage], requests: Stage, models: dict[str, Stage], folder: Path
) -> None:
    """All processes share the edits; the main one alone writes."""
    (splits, tokenizer), main = load_parts(parts), PartialState().is_main_process
    options = config.evaluation
    # The same seeded sample that the requests' sources come from: edited sentences are test sentences too.
    test = splits["test"].shuffle(seed=config.seed)[: options.num_sentences]
    edits = load_from_disk(requests.folder / "test")
    edits = edits.select(range(min(options.num_edits, len(edits))))
    names = json.loads((parts[0].folder / "names.json").read_text(encoding="utf-8"))
    rows, drawdowns = [], {}
    for name, stage in models.items():
        model = MarianMTModel.from_pretrained(stage.folder, attn_implementation="eager").to(PartialState().device)
        editor_config = EditorConfig.from_pretrained(stage.folder)
        evaluator = BleuDrawdownEvaluator(
            model,
            tokenizer,
            test["source"],
            test["target"],
            test["target_text"],
            target_lang=config.data.target_lang,
            layers=editor_config.layers,
            num_beams=options.num_beams,
            batch_size=options.batch_size,
        )
        rates = options.learning_rates if name == "editable" else options.learning_rates[:1]
        for rate in rates:
            title = name if rate == rates[0] else f"{name}, alpha={rate:g}"
            editor = editor_config.build_editor(learning_rate=rate)
            records = evaluator.evaluate(
                edits,
                editor,
                max_steps=options.max_steps,
                length_penalty=editor_config.length_penalty,
                path=folder / f"edits-{name}-alpha{rate:g}.jsonl",
                progress=title,
            )
            extra = {"editor": {**editor_config.hyperparameters, "learning_rate": rate}}
            extra["max_steps"] = options.max_steps
            drawdowns[title] = [abs(evaluator.bleu - record["bleu"]) for record in records]
            if title != "baseline" and sum(drawdowns["baseline"]) > 0:
                extra["drawdown_to_baseline"] = bootstrap_ratio(drawdowns[title], drawdowns["baseline"])
            rows.append(evaluator.summarize(title, records, **extra))
            if main:
                write_results(folder / "results.json", rows, asdict(config), config.seed, **names)
    if not main:
        return
    if plots_available():
        plot_drawdowns(drawdowns, folder / "drawdown.png", names["name"])
    record = showcase(
        evaluator,
        test["source"],
        test["target"],
        editor_config.build_editor(learning_rate=options.learning_rates[0]),
        max_steps=options.max_steps,
        length_penalty=editor_config.length_penalty,
        num_alternatives=config.requests.num_alternatives,
    )
    (folder / "showcase.json").write_text(json.dumps(record, indent=2, ensure_ascii=False), encoding="utf-8")
