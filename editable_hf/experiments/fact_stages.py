"""What the stages of the facts recipe do, each filling one folder."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from datasets import Dataset, load_from_disk
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel, set_seed

from editable_hf import (
    EditableCausalLMTrainer,
    EditableCausalLMTrainingArguments,
    EditorConfig,
    make_edit_requests,
)
from editable_hf.core.editing import AnyEditor
from editable_hf.core.selection import select_parameters
from editable_hf.data.continuations import continue_ids
from editable_hf.data.fact_files import read_fact_requests
from editable_hf.data.facts import Facts, fact_requests, load_facts
from editable_hf.data.text_lines import read_lines
from editable_hf.data.tokenizer import train_causal_tokenizer
from editable_hf.evaluation.fact_edits import EditorFor, FactEditEvaluator
from editable_hf.experiments.fact_methods import METHODS, Setting
from editable_hf.experiments.fact_recipe import EMBEDDED, FactRecipeConfig, RowOptions
from editable_hf.experiments.stages import Stage
from editable_hf.training.checkpoints import train_to

_SPLITS = ("train", "validation", "test")
_SHORTEST = 10  # words of a line of text that is used
_NUM_RECALLED = 500  # facts that the pretrained model is asked for
_NUM_KEY_TEXTS = 2_000  # that ROME's and MEMIT's covariances are estimated on


class FactSets(NamedTuple):
    """What all rows share.

    Attributes:
        train_texts: That networks are trained on.
        test_texts: On which edits are compared with the unedited network; no edit is about what they say.
        edits: Rows of [`fact_requests`] by split.
        unrelated: Questions about none of them.
    """

    train_texts: list[str]
    test_texts: list[str]
    edits: dict[str, Dataset]
    unrelated: list[dict[str, str]]


def load_fact_sets(config: FactRecipeConfig) -> FactSets:
    """The facts that come with the package, or those of the public files that the configuration names."""
    return _embedded_sets(config) if config.data.source == EMBEDDED else _public_sets(config)


def _embedded_sets(config: FactRecipeConfig) -> FactSets:
    facts, counts = load_facts(), config.requests
    numbers = dict(zip(_SPLITS, (counts.num_train, counts.num_validation, counts.num_test), strict=True))
    edits = {split: fact_requests(facts, number, config.seed, split) for split, number in numbers.items()}
    # An edit should change what the texts say of its subject.
    edited = {subject for split in ("validation", "test") for subject in edits[split]["subject"]}
    others = [text for text in facts.texts if not any(subject in text for subject in edited)]
    texts = random.Random(config.seed).sample(others, min(len(others), config.data.num_test_texts))
    # Facts of subjects that no test edit is about, nor asks its neighbors about.
    asked = {request["prompt"] for request in edits["test"]}
    asked |= {neighbor["prompt"] for request in edits["test"] for neighbor in request["neighbors"]}
    others = [fact for fact in facts.facts if fact.prompt not in asked]
    unrelated = random.Random(config.seed).sample(others, config.evaluation.num_unrelated)
    questions = [{"prompt": fact.prompt, "answer": fact.object} for fact in unrelated]
    return FactSets(facts.texts, texts, edits, questions)


def _public_sets(config: FactRecipeConfig) -> FactSets:
    data, folder, edits = config.data, Path(config.data.source), {}
    counts = (config.requests.num_train, config.requests.num_validation, config.requests.num_test)
    known: set[tuple[str, str]] = set()
    for split, count in zip(_SPLITS, counts, strict=True):
        rows = read_fact_requests(folder / getattr(data, split))
        pairs = list(zip(rows["subject"], rows["prompt"], strict=True))
        new = [index for index, pair in enumerate(pairs) if pair not in known]
        chosen = random.Random(config.seed).sample(new, min(count, len(new)))
        edits[split] = rows.select(chosen)
        known |= {pairs[index] for index in chosen}
    asked = [each for row in edits["validation"]["neighbors"] for each in row if each["answer"]]
    texts = {}
    for name, count in (("train_text", data.num_train_texts), ("test_text", data.num_test_texts)):
        lines = [line for line in read_lines(folder / getattr(data, name)) if len(line.split()) >= _SHORTEST]
        texts[name] = random.Random(config.seed).sample(lines, min(count, len(lines)))
    return FactSets(texts["train_text"], texts["test_text"], edits, asked[: config.evaluation.num_unrelated])


def pretrain(config: FactRecipeConfig, sets: FactSets, folder: Path) -> None:
    """A language model that knows the facts, learned here, or given."""
    options = config.model
    set_seed(config.seed)
    if options.weights is not None:
        if PartialState().is_main_process:
            AutoModelForCausalLM.from_pretrained(options.weights, dtype="float32").save_pretrained(folder)
            AutoTokenizer.from_pretrained(options.weights).save_pretrained(folder)
        return
    tokenizer = train_causal_tokenizer(sets.train_texts, options.vocab_size)
    model = AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden_size,
            intermediate_size=options.intermediate_size,
            num_hidden_layers=options.num_layers,
            num_attention_heads=options.num_heads,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    _train(model, tokenizer, config, sets, {**config.training, **config.pretrain}, None, folder)
    recall = recall_of(model, tokenizer, load_facts())
    if recall < config.requests.min_recall:
        raise ValueError(
            f"The pretrained model knows {recall:.0%} of the facts, but `min_recall` asks for "
            f"{config.requests.min_recall:.0%}: edits of facts that it does not know mean little. Train it longer "
            "(section 'pretrain') or make it larger (section 'model')."
        )
    if PartialState().is_main_process:
        (folder / "recall.json").write_text(json.dumps({"recall": recall}), encoding="utf-8")


def recall_of(model: PreTrainedModel, tokenizer, facts: Facts) -> float:
    """The share of a sample of the facts that greedy decoding says."""
    sample = random.Random(0).sample(facts.facts, _NUM_RECALLED)
    prompts = tokenizer([fact.prompt for fact in sample])["input_ids"]
    wanted = tokenizer([fact.object for fact in sample], add_special_tokens=False)["input_ids"]
    said = continue_ids(model, prompts, max_new_tokens=max(map(len, wanted)))
    return sum(row[: len(ids)] == ids for row, ids in zip(said, wanted, strict=True)) / len(sample)


def prepare_requests(config: FactRecipeConfig, sets: FactSets, pretrained: Stage, folder: Path) -> None:
    """Each edit with what the pretrained model finds likely after its prompt."""
    model, tokenizer = load_network(pretrained)
    for row in config.rows.values():  # rather now than when the row's turn comes
        select_parameters(model, row.layers)
    for split, edits in sets.edits.items():
        options = {"num_alternatives": config.requests.num_alternatives, "progress": f"{split} requests"}
        found = make_edit_requests(model, tokenizer, edits["prompt"], targets=edits["target"], **options)
        own = edits.select(found["id"]).remove_columns(["id", "prompt", "target"])
        for name in own.column_names:
            found = found.add_column(name, own[name])
        found.save_to_disk(folder / split)


def load_network(stage: Stage) -> tuple[PreTrainedModel, Any]:
    model = AutoModelForCausalLM.from_pretrained(stage.folder, dtype="float32", attn_implementation="eager")
    return model.to(PartialState().device), AutoTokenizer.from_pretrained(stage.folder)


def train_network(
    config: FactRecipeConfig,
    sets: FactSets,
    pretrained: Stage,
    requests: Stage,
    options: dict[str, Any],
    edits: bool,
    folder: Path,
) -> None:
    set_seed(config.seed)
    model, tokenizer = load_network(pretrained)
    dataset = load_from_disk(requests.folder / "train") if edits else None
    _train(model, tokenizer, config, sets, options, dataset, folder)


def _train(
    model: PreTrainedModel,
    tokenizer,
    config: FactRecipeConfig,
    sets: FactSets,
    options: dict[str, Any],
    edits: Dataset | None,
    folder: Path,
) -> None:
    args = EditableCausalLMTrainingArguments(str(folder / "checkpoints"), seed=config.seed, **options)
    trainer = EditableCausalLMTrainer(
        model,
        args,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in encoded(tokenizer, sets.train_texts, config)]),
        processing_class=tokenizer,
        edit_dataset=edits,
    )
    train_to(trainer, folder)


def encoded(tokenizer, texts: Sequence[str], config: FactRecipeConfig) -> list[list[int]]:
    """Token ids of texts as the network is trained on them, each with its end."""
    length = config.data.text_length - 1
    return [[*row[:length], tokenizer.eos_token_id] for row in tokenizer(list(texts))["input_ids"]]


class MeasuredRow:
    """Chooses a row's options on validation edits, and measures its test edits alone, at once and in a row."""

    def __init__(
        self, config: FactRecipeConfig, sets: FactSets, requests: Stage, network: Stage, name: str, options: RowOptions
    ):
        self.config, self.sets, self.network, self.name, self.options = config, sets, network, name, options
        self.model, self.tokenizer = load_network(network)
        self.requests = {split: load_from_disk(requests.folder / split) for split in ("validation", "test")}
        texts = random.Random(config.seed).sample(sets.train_texts, min(len(sets.train_texts), _NUM_KEY_TEXTS))
        own = EditorConfig.find(network.folder) if options.network != "pretrained" else None
        setting = Setting(
            self.model,
            self.tokenizer,
            options.layers,
            own,
            encoded(self.tokenizer, texts, config),
            list(load_from_disk(requests.folder / "train")),
            config.seed,
        )
        self._editor = METHODS[options.method].prepare(setting)
        self._own_rate = own.hyperparameters["learning_rate"] if own and options.method == "gradient" else None

    def measure(self, folder: Path) -> None:
        """Fills `folder` with `row.json`, `edits.jsonl`, and `at_once.json` and `in_a_row.json` where asked for."""
        alone = self._evaluator(1)
        values, tried = self._chosen(alone)
        made, options = self._editor(**values), {"max_steps": self.options.max_steps}
        chosen = {"learning_rate": None, **values, "tried": tried, "layers": ",".join(self.options.layers)}
        requests = list(self.requests["test"])[: self.config.evaluation.num_edits]
        # A copy for each measurement: UltraEdit remembers the edits that it has made.
        records = alone.evaluate(requests, deepcopy(made), path=folder / "edits.jsonl", progress=self.name, **options)
        self._write(folder / "row.json", alone.summarize(self.name, records, **chosen))
        if self.options.at_once:
            # An edit for many takes larger steps than an edit for one: chosen with all validation edits at once.
            others, _ = self._chosen(self._evaluator(len(self.requests["validation"])))
            many = made if others == values else self._editor(**others)
            rows = [self._at_once(size, deepcopy(many), others) for size in self._sizes()]
            self._write(folder / "at_once.json", rows)
        if self.options.in_a_row:
            counts = self.config.evaluation.in_a_row
            rows = alone.in_a_row(requests, deepcopy(made), counts, progress=f"{self.name}, in a row", **options)
            self._write(folder / "in_a_row.json", [{"name": self.name, **row} for row in rows])

    def _sizes(self) -> list[int]:
        most = min(self.config.evaluation.num_at_once, len(self.requests["test"]))
        return [size for size in self.config.evaluation.at_once if size <= most]

    def _at_once(self, size: int, editor: AnyEditor | EditorFor, values: dict[str, float]) -> dict[str, Any]:
        most = min(self.config.evaluation.num_at_once, len(self.requests["test"]))
        requests = self.requests["test"].select(range(most // size * size))
        evaluator = self._evaluator(size)
        title = f"{self.name}, {size} at once"
        records = evaluator.evaluate(requests, editor, max_steps=self.options.max_steps, progress=title, shard=False)
        return evaluator.summarize(self.name, records, edits=size, **values)

    def _chosen(self, evaluator: FactEditEvaluator) -> tuple[dict[str, float], list[dict[str, float]]]:
        """The combination of the grid with which enough edits are reliable at the least divergence on text."""
        grid = dict(self.options.grid)
        if self._own_rate is not None:
            own = float(f"{self._own_rate:.6g}")  # saved in float32
            grid["learning_rate"] = sorted({own, *grid.get("learning_rate", [])})
        combinations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        if len(combinations) == 1:
            return combinations[0], []
        tried = []
        for values in combinations:
            records = evaluator.evaluate(
                self.requests["validation"],
                self._editor(**values),
                max_steps=self.options.max_steps,
                progress=f"{self.name}, validation, {values}",
                shard=evaluator.group_size == 1,  # the edits of a group are one edit: no process may cut it
            )
            row = evaluator.summarize(self.name, records)
            tried.append({**values, **{key: row[key] for key in ("reliability", "kl", "locality")}})
        least = self.config.evaluation.min_success_rate
        best = min(tried, key=lambda trial: (max(0.0, least - trial["reliability"]), trial["kl"]))
        return {name: best[name] for name in grid}, tried

    def _evaluator(self, edits_at_once: int) -> FactEditEvaluator:
        return METHODS[self.options.method].evaluator(
            self.model,
            self.tokenizer,
            self.sets.test_texts,
            layers=self.options.layers,
            unrelated=self.sets.unrelated,
            edits_at_once=edits_at_once,
            batch_size=self.config.evaluation.batch_size,
            max_rounds=self.options.max_rounds,
        )

    @staticmethod
    def _write(path: Path, content: Any) -> None:
        if PartialState().is_main_process:
            path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def measure_row(
    config: FactRecipeConfig, sets: FactSets, requests: Stage, network: Stage, name: str, folder: Path
) -> None:
    set_seed(config.seed)  # of MEND's first weights, which all processes must share
    MeasuredRow(config, sets, requests, network, name, config.rows[name]).measure(folder)
