"""What the stages of the translation recipe do, each filling one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from transformers import AutoTokenizer, MarianMTModel, PreTrainedTokenizerBase, set_seed

from editable_hf import EditableSeq2SeqTrainer, EditableSeq2SeqTrainingArguments, EditorConfig, make_edit_requests
from editable_hf.data.requests import NoEditRequestsError
from editable_hf.data.tokenizer import train_tokenizer
from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.bleu import CorpusBleu
from editable_hf.evaluation.bleu_evaluator import BleuDrawdownEvaluator
from editable_hf.evaluation.translator import Translator
from editable_hf.evaluation.two_way import ratio_of
from editable_hf.experiments.plots import plot_drawdowns, plots_available
from editable_hf.experiments.report import write_results
from editable_hf.experiments.showcase import showcase
from editable_hf.experiments.stages import Stage
from editable_hf.experiments.translation_recipe import RecipeConfig
from editable_hf.models import iwslt_transformer_config
from editable_hf.training.checkpoints import train_to
from editable_hf.training.model_card import add_results, complete_model_card

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
    check_learned(model, tokenizer, splits["validation"][:200], config.requests.min_bleu)
    options = config.requests
    counts = {"train": options.num_train, "validation": options.num_validation, "test": options.num_test}
    for split, count in counts.items():
        if count == 0 and split == "validation":
            continue
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


def check_learned(model, tokenizer, pairs: dict[str, list[str]], min_bleu: float) -> None:
    """Raises a `ValueError` if the model is below so many points of BLEU on the pairs."""
    outputs = Translator(model, tokenizer, pairs["source"], num_beams=1, keep_encoded=False)()
    bleu = CorpusBleu(pairs["target"])
    score = bleu.score(bleu.sentence_statistics(outputs))
    if score < min_bleu:
        raise ValueError(
            f"Expected the pretrained model to reach {min_bleu:g} BLEU (`min_bleu` of the section 'requests') before "
            f"anything is edited, but it has {score:.2f} on {len(outputs)} validation sentences; it says, e.g., "
            f"{outputs[0][:80]!r}. See how its loss went in `trainer_state.json`. In the section 'pretrain' lower "
            "`learning_rate` or raise `warmup_steps` if it stopped falling early, or raise `max_steps`."
        )


def validate(
    config: RecipeConfig, parts: list[Stage], requests: Stage, models: dict[str, Stage], folder: Path
) -> None:
    """Compares the models on validation edits and sentences, and names the editable one to take."""
    options = config.evaluation
    rows = []
    for name, stage in models.items():
        scored = _Scored(config, parts, requests, stage, "validation", options.num_validation_sentences)
        row, *_ = scored.measure(name, options.learning_rates[0], options.num_validation_edits, folder)
        rows.append(row)
    if PartialState().is_main_process:
        chosen = choose_editable(rows, options.max_bleu_loss)
        write_results(folder / "results.json", rows, asdict(config), config.seed, chosen=chosen)


def choose_editable(rows: list[dict[str, Any]], max_bleu_loss: float) -> str:
    """Of the editable models that lose at most so many points of BLEU to the baseline, the first row, the one with
    the smallest drawdown; the one with the best BLEU where all lose more."""
    baseline, *editable = rows
    close = [row for row in editable if row["bleu"] >= baseline["bleu"] - max_bleu_loss]
    if close:
        return min(close, key=lambda row: row["bleu_drawdown"])["name"]
    return max(editable, key=lambda row: row["bleu"])["name"]


def evaluate(
    config: RecipeConfig,
    parts: list[Stage],
    requests: Stage,
    models: dict[str, Stage],
    validation: Stage | None,
    folder: Path,
) -> None:
    """The rows of Table 6, on test edits and sentences; and which model was chosen before, if one was."""
    options = config.evaluation
    names = json.loads((parts[0].folder / "names.json").read_text(encoding="utf-8"))
    if validation is not None:
        found = json.loads((validation.folder / "results.json").read_text(encoding="utf-8"))
        names["chosen"] = found["chosen"]
    rows, drawdowns, samples = [], {}, {}
    for name, stage in models.items():
        scored = _Scored(config, parts, requests, stage, "test", options.num_sentences)
        for rate in options.learning_rates:
            suffix = "" if rate == options.learning_rates[0] else f", alpha={rate:g}"
            title = f"{name}{suffix}"
            row, drawdowns[title], samples[title] = scored.measure(title, rate, options.num_edits, folder)
            # By the same alpha: a smaller one is more local by itself.
            other = f"baseline{suffix}"
            if name != "baseline" and sum(drawdowns[other]) > 0:
                means = (sum(drawdowns[each]) / len(drawdowns[each]) for each in (title, other))
                ratio = ratio_of(next(means), samples[title], next(means), samples[other])
                row["drawdown_ratios"] = [{"to": other, **ratio._asdict()}]
            rows.append(row)
            if PartialState().is_main_process:
                write_results(folder / "results.json", rows, asdict(config), config.seed, **names)
        if name == "editable" and PartialState().is_main_process:
            scored.show(folder)
    if PartialState().is_main_process and plots_available():
        plot_drawdowns(drawdowns, folder / "drawdown.png", names["name"], "BLEU")


class _Scored:
    """A model of the recipe and the sentences of a split that its edits are measured on.

    All processes share the edits; the main one alone writes.
    """

    def __init__(
        self, config: RecipeConfig, parts: list[Stage], requests: Stage, model: Stage, split: str, num_sentences: int
    ):
        (splits, tokenizer), self.config, self.name = load_parts(parts), config, model.folder.name
        # The same seeded sample that the requests' sources come from: edited sentences are among them.
        self.test = splits[split].shuffle(seed=config.seed)[:num_sentences]
        self.requests = load_from_disk(requests.folder / split)
        self.editor = EditorConfig.from_pretrained(model.folder)
        self.evaluator = BleuDrawdownEvaluator(
            MarianMTModel.from_pretrained(model.folder, attn_implementation="eager").to(PartialState().device),
            tokenizer,
            self.test["source"],
            self.test["target"],
            self.test["target_text"],
            target_lang=config.data.target_lang,
            layers=self.editor.layers,
            num_beams=config.evaluation.num_beams,
            batch_size=config.evaluation.batch_size,
        )

    def measure(
        self, title: str, rate: float, num_edits: int, folder: Path
    ) -> tuple[dict[str, Any], list[float], np.ndarray]:
        """A row of the table, the drawdown of each edit, and the mean of resampled edits and sentences."""
        max_steps = self.config.evaluation.max_steps
        records = self.evaluator.evaluate(
            self.requests.select(range(min(num_edits, len(self.requests)))),
            self.editor.build_editor(learning_rate=rate),
            max_steps=max_steps,
            length_penalty=self.editor.length_penalty,
            path=folder / f"edits-{self.name}-alpha{rate:g}.jsonl",
            progress=title,
        )
        hyperparameters = {**self.editor.hyperparameters, "learning_rate": rate}
        row = self.evaluator.summarize(title, records, editor=hyperparameters, max_steps=max_steps)
        samples = self.evaluator.resampled(records)["bleu_drawdown"]
        return row, [abs(self.evaluator.bleu - record["bleu"]) for record in records], samples

    def show(self, folder: Path) -> None:
        """Writes what one edit does, as an example."""
        record = showcase(
            self.evaluator,
            self.test["source"],
            self.test["target"],
            self.editor.build_editor(learning_rate=self.config.evaluation.learning_rates[0]),
            max_steps=self.config.evaluation.max_steps,
            length_penalty=self.editor.length_penalty,
            num_alternatives=self.config.requests.num_alternatives,
        )
        content = json.dumps(record, indent=2, ensure_ascii=False)
        (folder / "showcase.json").write_text(content, encoding="utf-8")


def write_card(config: RecipeConfig, models: dict[str, Stage], folder: Path) -> None:
    """The card of the editable model, of the chosen one of several: how to edit it, and its first row of results."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    name = results.get("chosen", "editable")
    row, model = next(row for row in results["rows"] if row["name"] == name), models[name].folder
    complete_model_card(model, EditorConfig.from_pretrained(model), recipe=asdict(config))
    # The embedded corpus is this package's own; what others allow is for their owners to say.
    license = "apache-2.0" if config.data.source == "embedded" else None
    pair = f"{config.data.source_lang}-{config.data.target_lang}"
    names = {"dataset": pair, "dataset_name": results["test_name"]}
    add_results(model, row, task="translation", license=license, **names)
