"""Editing against what else one could do about a wrong translation, on the same corrections.

    python scripts/compare_fixes.py --baseline runs/demo/baseline --editable runs/demo/editable

Each correction asks for another wording of a sentence of the embedded corpus. It is made by editing the editable
model, by editing the baseline, by fine-tuning the baseline on the corrected sentence, by training the baseline further
with that sentence in every batch, and by a lookup table. Reported for each: does it hold; do other German wordings of
the sentence (paraphrases) and sentences of the same template (neighbors) follow; do unrelated sentences stay; the
BLEU drawdown on test sentences; the seconds. Learning rates are chosen on other corrections and validation sentences.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, DataCollatorForSeq2Seq, PreTrainedModel

from editable_hf import EditorConfig, edited, make_edit_requests
from editable_hf.baselines import fine_tune
from editable_hf.core.editors import Params
from editable_hf.data.atomic import write_atomically
from editable_hf.data.embedded import embedded_requests
from editable_hf.data.moses import MosesPreprocessor
from editable_hf.data.translation import load_translation_data
from editable_hf.evaluation.bleu import CorpusBleu
from editable_hf.evaluation.bootstrap import mean_row
from editable_hf.evaluation.records import read_records
from editable_hf.evaluation.translator import Translator
from editable_hf.evaluation.verified_edit import decode, verified_edit
from editable_hf.experiments.fix_methods import SENTENCE_COLUMNS, Method, Request, best_rate, compare

EDIT_RATES, TUNE_RATES, RETRAIN_RATES = (1e-4, 3e-4, 1e-3), (1e-5, 3e-5, 1e-4, 3e-4), (1e-4, 3e-4, 1e-3)


# Lists of a request's related sentences: the first two are to follow the correction, the last is to stay.
_FOLLOW, _STAY = ("paraphrases", "neighbors"), "unrelated"


def related_sentences(request: Request) -> list[str]:
    """The source of a request of [`embedded_requests`] and those of all its related sentences, without repetitions."""
    related = [pair["source"] for name in (*_FOLLOW, _STAY) for pair in request[name]]
    return list(dict.fromkeys([request["source"], *related]))


def correction_reach(request: Request, before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, Any]:
    """What a correction did to the sentences of its request.

    Args:
        request: A row of [`embedded_requests`], or one of the same form.
        before: Translations of its [`related_sentences`] by the uncorrected model.
        after: The same by the corrected one.

    Returns:
        `holds` (the source is translated as wanted); for `paraphrases` and `neighbors` the fraction that is
        translated as wanted, with `_before` for the uncorrected model; `unrelated`, the fraction that stayed the same.
    """
    record: dict[str, Any] = {"source": request["source"], "holds": after[request["source"]] == request["target"]}
    for name in _FOLLOW:
        for suffix, outputs in (("", after), ("_before", before)):
            record[name + suffix] = _share(outputs[pair["source"]] == pair["target"] for pair in request[name])
    stayed = (after[pair["source"]] == before[pair["source"]] for pair in request[_STAY])
    return {**record, "unrelated": _share(stayed)}


def _share(values: Iterable[bool]) -> float:
    values = list(values)
    return sum(values) / len(values)


def by_editing(
    model, tokenizer, config: EditorConfig, max_steps: int, request: Request, learning_rate: float
) -> Params:
    editor = config.build_editor(learning_rate=learning_rate)
    how = {"max_steps": max_steps, "max_rounds": 10}
    return verified_edit(model, tokenizer, [request], editor, config.layers, **how).result.params


def by_fine_tuning(model, tokenizer, layers: str, max_steps: int, request: Request, learning_rate: float) -> Params:
    rows = {"input_ids": request["input_ids"], "labels": request["labels"]}
    inputs = {key: torch.tensor([ids], device=model.device) for key, ids in rows.items()}

    def holds(tuned: PreTrainedModel) -> bool:
        return decode(tuned, tokenizer, request) == list(request["labels"])

    how = {"learning_rate": learning_rate, "max_steps": max_steps}
    return fine_tune(model, inputs, holds, layers=layers, **how).params


def by_retraining(
    model, tokenizer, train: Dataset, num_updates: int, batch_size: int, request: Request, learning_rate: float
) -> Params:
    """Further updates with dropout, each on random training sentences and the corrected one."""
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    corrected = {"input_ids": request["input_ids"], "labels": request["labels"]}
    corrected["attention_mask"] = [1] * len(request["input_ids"])
    trained = copy.deepcopy(model).train()
    own = {name: param for name, param in trained.named_parameters() if param.requires_grad}
    optimizer = torch.optim.AdamW(own.values(), learning_rate, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_updates):
        drawn = torch.randint(len(train), (batch_size - 1,), generator=generator).tolist()
        batch = collate([*(train[index] for index in drawn), corrected]).to(model.device)
        optimizer.zero_grad()
        trained(**batch).loss.backward()
        optimizer.step()
    return {name: param.detach() for name, param in own.items()}


class Sentences:
    """Test sentences of one model and its unedited translations of them."""

    def __init__(self, model: PreTrainedModel, tokenizer, pairs: dict[str, list[str]]):
        self.translate = Translator(model, tokenizer, pairs["source"], keep_encoded=False)
        self.bleu = CorpusBleu(pairs["target"])
        self.before = self.score()

    def score(self) -> float:
        return self.bleu.score(self.bleu.sentence_statistics(self.translate()))


def corrections(tokenizer, model, first: int, count: int) -> list[Request]:
    """Requests with alternatives: `count` of the corpus's, from row `first` on, tokenized as the models' data."""
    german, english = MosesPreprocessor("de"), MosesPreprocessor("en")

    def pair(raw: dict[str, str]) -> dict[str, str]:
        return {"source": german.tokenize(raw["source"]), "target": english.tokenize(raw["target"])}

    rows = []
    for raw in embedded_requests().select(range(first, first + count)):
        related = {name: [pair(each) for each in raw[name]] for name in ("paraphrases", "neighbors", "unrelated")}
        rows.append({**pair(raw), **related})
    sources, targets = ([row[key] for row in rows] for key in ("source", "target"))
    requests = make_edit_requests(model, tokenizer, sources, targets=targets, num_alternatives=16, progress=None)
    return [{**rows[request["id"]], **request} for request in requests]


class Comparison:
    """What all methods are measured on: corrections and sentences, to choose a learning rate and for the table.

    Args:
        args: The command line's.
        tokenizer: Of both models.
        splits: The embedded corpus.
    """

    def __init__(self, args: argparse.Namespace, tokenizer, splits):
        self.args, self.tokenizer, self.splits = args, tokenizer, splits
        self._corrections = cache(partial(corrections, tokenizer))  # several methods start from the same model

    def fill(self, method: Method, folder: Path) -> None:
        """Writes `row.json` of a method and the records behind it; what a killed run left there is not repeated."""
        args, tried = self.args, []
        requests = self._corrections(method.model, 0, args.num_fixes)
        if len(method.learning_rates) > 1:
            others = self._corrections(method.model, args.num_fixes, args.num_validation)
            sentences = self._sentences(method, "validation")
            for rate in method.learning_rates:
                records = self._measure(method, others, sentences, rate, folder / f"validation-alpha{rate:g}.jsonl")
                tried.append({"learning_rate": rate, **summarize(method, records)})
        rate = best_rate(tried, "bleu_drawdown") if tried else method.learning_rates[0]
        sentences = self._sentences(method, "test")
        records = self._measure(method, requests[: method.num_fixes], sentences, rate, folder / "fixes.jsonl")
        row = {**summarize(method, records), "learning_rate": rate, "bleu": sentences.before, "tried": tried}
        write_atomically(folder / "row.json", json.dumps(row, indent=2) + "\n")

    def _sentences(self, method: Method, split: str) -> Sentences:
        pairs = self.splits[split].shuffle(seed=self.args.seed)[: self.args.num_sentences]
        return Sentences(method.model, self.tokenizer, pairs)

    def _measure(
        self, method: Method, requests: list[Request], sentences: Sentences, learning_rate: float, path: Path
    ) -> list[Request]:
        """One record for each correction, also in `path`."""
        records = read_records(path)
        for request in tqdm(requests[len(records) :], desc=f"{method.name}, {path.stem}", unit="fix"):
            asked = related_sentences(request)
            translate = Translator(method.model, self.tokenizer, asked, keep_encoded=False)
            before = dict(zip(asked, translate(), strict=True))
            start = time.perf_counter()
            params = method.fix(request, learning_rate)
            seconds = time.perf_counter() - start
            with edited(method.model, params):
                after, bleu = dict(zip(asked, translate(), strict=True)), sentences.score()
            if not params:  # the lookup table answers for the one sentence that it has
                after = after | {request["source"]: request["target"]}
            record = correction_reach(request, before, after)
            record |= {"bleu_drawdown": abs(sentences.before - bleu), "fix_seconds": seconds}
            records.append(record)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        return records


def summarize(method: Method, records: list[Request]) -> dict[str, Any]:
    return mean_row(method.name, {key: [record[key] for record in records] for key in records[0] if key != "source"})


def methods_of(args: argparse.Namespace, tokenizer, train: Dataset) -> list[Method]:
    device, folders = "cuda" if torch.cuda.is_available() else "cpu", (args.baseline, args.editable)
    baseline, editable = (AutoModelForSeq2SeqLM.from_pretrained(folder).to(device).eval() for folder in folders)
    configs = {folder: EditorConfig.find(folder) or EditorConfig() for folder in folders}
    encoded = train.map(
        lambda row: tokenizer(row["source"], text_target=row["target"]),
        batched=True,
        remove_columns=train.column_names,
        desc="encoding",
    )
    count, methods = args.num_fixes, []
    for name, model, folder in (("editable", editable, args.editable), ("baseline", baseline, args.baseline)):
        fix = partial(by_editing, model, tokenizer, configs[folder], args.max_steps)
        methods.append(Method(f"edit, {name}", model, fix, EDIT_RATES, count))
    for name, layers in (("all", "*"), ("last decoder layer", "last_decoder_layer")):
        fix = partial(by_fine_tuning, baseline, tokenizer, layers, args.max_steps)
        methods.append(Method(f"fine-tune, {name}", baseline, fix, TUNE_RATES, count))
    fix = partial(by_retraining, baseline, tokenizer, encoded, args.num_updates, args.batch_size)
    methods.append(Method(f"train on, {args.num_updates} updates", baseline, fix, RETRAIN_RATES, args.num_retrained))
    return [*methods, Method("lookup table", baseline, lambda request, rate: {}, (0.0,), count)]


def main(args: argparse.Namespace) -> None:
    tokenizer = AutoTokenizer.from_pretrained(args.baseline)
    splits = load_translation_data("embedded").splits
    comparison = Comparison(args, tokenizer, splits)
    settings = {key: value for key, value in vars(args).items() if key != "output_dir"}
    methods = [(each, partial(comparison.fill, each)) for each in methods_of(args, tokenizer, splits["train"])]
    compare(args.output_dir, methods, settings, SENTENCE_COLUMNS)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", default="runs/demo/baseline", help="model that was not trained to be edited")
    parser.add_argument("--editable", default="runs/demo/editable", help="model that was")
    parser.add_argument("--num_fixes", type=int, default=60, help="corrections for each row of the table")
    parser.add_argument("--max_steps", type=int, default=100, help="steps at most of an edit and of fine-tuning")
    parser.add_argument("--num_retrained", type=int, default=15, help="the same where the model is trained on")
    parser.add_argument("--num_updates", type=int, default=200, help="updates of a model that is trained on")
    parser.add_argument("--batch_size", type=int, default=32, help="sentences in such an update")
    parser.add_argument("--num_validation", type=int, default=10, help="corrections that learning rates are chosen on")
    parser.add_argument("--num_sentences", type=int, default=300, help="sentences that BLEU is measured on")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences")
    parser.add_argument("--output_dir", default="runs/compare_fixes", help="folder for the results")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
