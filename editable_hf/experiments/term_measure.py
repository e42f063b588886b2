"""What a row of the table of terms does: to sentences that use a term, and to all others."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.data.atomic import write_atomically
from editable_hf.evaluation.bleu import CorpusBleu, bleu_of_sums
from editable_hf.evaluation.bootstrap import bootstrap_mean
from editable_hf.experiments.fix_methods import MIN_HOLDS
from editable_hf.experiments.term_methods import METHODS, Setting
from editable_hf.experiments.term_recipe import RowOptions, TermRecipeConfig
from editable_hf.terms.examples import TermExamples, translate
from editable_hf.training.editor_config import EditorConfig

_AVERAGED = ("edited_right", "unseen_right", "outputs_changed", "bleu_drawdown", "success", "seconds")


@dataclass(frozen=True)
class MeasuredTerm:
    """A term and its sentences.

    Attributes:
        examples: What an edit sees.
        unseen: Other sources that use the term.
        wanted: Their references, with this term put right.
    """

    examples: TermExamples
    unseen: list[str]
    wanted: list[str]


class TermEvaluator:
    """Measures methods on one network.

    Args:
        model: The network; it is left as it was.
        tokenizer: Its tokenizer.
        sources: Test sentences; for each edit those without its terms are looked at.
        references: Their references, plain text.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[str],
        references: Sequence[str],
    ):
        self.model, self.tokenizer, self.sources = model, tokenizer, list(sources)
        self._bleu = CorpusBleu(references, tokenize="13a")
        self._before = translate(model, tokenizer, self.sources)
        self._counts = self._bleu.sentence_statistics(self._before)

    def record(self, method: str, setting: Setting, terms: Sequence[MeasuredTerm], rate: float | None) -> dict:
        """What one edit for all of some terms does.

        Returns:
            `terms`, `success`, `seconds` (for a term), and fractions of sentences: `edited_right`, `unseen_right`, and
            `outputs_changed` of those without any of the terms; `bleu_drawdown` on the latter (absolute, BLEU points);
            `unseen_counts`, what BLEU counts in the unseen sentences. Methods that leave the weights alone decode
            sentences without a term as always; instead they have `decoding`, seconds for the unseen sentences with the
            method and without. All seconds are of the CPU, which other programs on the machine change least.
        """
        start, way = time.process_time(), METHODS[method]
        fixed = way.fix(setting, [term.examples for term in terms], rate)
        seconds = (time.process_time() - start) / len(terms)
        edited = [(term, [row.source for row in term.examples.edit]) for term in terms]
        unseen = [source for term in terms for source in term.unseen]
        outputs, after = _timed(lambda: fixed.translations(unseen))
        counts = CorpusBleu(_references(terms), tokenize="13a")
        record = {
            "terms": [term.examples.term.source[0] for term in terms],
            "success": fixed.success,
            "seconds": seconds,
            "edited_right": _right(edited, fixed.translations([source for _, own in edited for source in own])),
            "unseen_right": _right([(term, term.unseen) for term in terms], outputs),
            "unseen_counts": counts.sentence_statistics(outputs).sum(0).tolist(),
        }
        if way.edits:
            return {**record, **self._others(fixed.translations, terms)}
        plain = _timed(lambda: translate(self.model, self.tokenizer, unseen))[1]
        return {**record, "decoding": [after, plain], "outputs_changed": 0.0, "bleu_drawdown": 0.0}

    def _others(self, translations, terms: Sequence[MeasuredTerm]) -> dict[str, float]:
        used = [any(term.examples.term.in_source(source) for term in terms) for source in self.sources]
        others = np.flatnonzero(~np.array(used))
        after = translations([self.sources[index] for index in others])
        now, counts = list(self._before), self._counts[others]
        for index, text in zip(others, after, strict=True):
            now[index] = text
        changed = [now[index] != self._before[index] for index in others]
        moved = self._bleu.sentence_statistics(now)[others]
        drawdown = abs(self._bleu.score(counts) - self._bleu.score(moved))
        return {"outputs_changed": float(np.mean(changed)), "bleu_drawdown": drawdown}


def measure(
    config: TermRecipeConfig,
    name: str,
    network: tuple[PreTrainedModel, PreTrainedTokenizerBase],
    terms: dict[str, list[MeasuredTerm]],
    test: tuple[Sequence[str], Sequence[str]],
    folder: Path,
) -> None:
    """Chooses a row's rate on the validation terms, and measures the test terms one at a time and many at once.

    Fills `folder` with `row.json`, `at_once.json` and, for each term, a line of `terms.jsonl`.
    """
    options: RowOptions = config.rows[name]
    evaluator = TermEvaluator(*network, *test)
    settings = EditorConfig(layers=options.layers, max_steps=options.max_steps)
    setting = Setting(*network, settings, config.evaluation.max_rounds, config.terms.num_alternatives)

    def each_of(part: str, rate: float | None) -> list[dict[str, Any]]:
        title = f"{name}, {part} terms" + ("" if rate is None else f", {rate:g}")
        return [evaluator.record(options.method, setting, [term], rate) for term in tqdm(terms[part], desc=title)]

    rates, tried = options.rates or [None], []
    for rate in rates if len(rates) > 1 else ():
        tried.append({"rate": rate, **_means(each_of("validation", rate))})
    rate = _best_rate(tried) if tried else rates[0]
    records = each_of("test", rate)
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_atomically(folder / "terms.jsonl", "\n".join(lines) + "\n")
    write_atomically(folder / "row.json", json.dumps({**summarize(name, records), "rate": rate, "tried": tried}))
    if options.at_once:
        together = evaluator.record(options.method, setting, terms["test"][: config.evaluation.num_at_once], rate)
        write_atomically(folder / "at_once.json", json.dumps(summarize(name, [together])))


def summarize(name: str, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table, with bootstrap intervals over the edits where there are several."""
    intervals = {key: bootstrap_mean([record[key] for record in records]) for key in _AVERAGED[:4]}
    row = {
        "name": name,
        "num_edits": len(records),
        "num_terms": sum(len(record["terms"]) for record in records),
        **_means(records),
        "unseen_bleu": float(bleu_of_sums(np.sum([record["unseen_counts"] for record in records], 0)[None])[0]),
        "intervals": {key: [found.low, found.high] for key, found in intervals.items()},
    }
    if "decoding" in records[0]:
        after, before = np.sum([record["decoding"] for record in records], 0)
        row["decoding_time"] = float(after / before)
    return row


def _means(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {key: float(np.mean([record[key] for record in records])) for key in _AVERAGED}


def _best_rate(tried: Sequence[dict[str, Any]]) -> float:
    """Of the rates with which terms hold in enough unseen sentences the one that changes fewest others."""

    def order(row: dict[str, Any]) -> tuple[float, float, float]:
        return max(0.0, MIN_HOLDS - row["unseen_right"]), row["outputs_changed"], -row["unseen_right"]

    return min(tried, key=order)["rate"]


def _references(terms: Sequence[MeasuredTerm]) -> list[str]:
    """Of the unseen sentences, with all of the terms put right: a sentence may use several."""
    found = []
    for owner in terms:
        for source, text in zip(owner.unseen, owner.wanted, strict=True):
            for term in (each.examples.term for each in terms):
                text = term.replaced_in(text) if term.in_source(source) else text
            found.append(text)
    return found


def _right(terms: Sequence[tuple[MeasuredTerm, Sequence[str]]], outputs: Sequence[str]) -> float:
    """The share of the outputs, in the order of the terms' sentences, that say the term."""
    owners = [term.examples.term for term, sources in terms for _ in sources]
    return sum(term.is_right(text) for term, text in zip(owners, outputs, strict=True)) / len(owners)


def _timed(call) -> tuple[list[str], float]:
    start = time.process_time()
    return call(), time.process_time() - start
