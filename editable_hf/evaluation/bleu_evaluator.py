"""BLEU drawdown: what edits of a translation model do to all other translations (section 4.4)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.editing import EditResult, edit
from editable_hf.core.editors import Editor
from editable_hf.core.selection import select_parameters
from editable_hf.data.moses import MosesPreprocessor
from editable_hf.data.requests import request_constraint
from editable_hf.evaluation.bleu import CorpusBleu, bleu_of_sums
from editable_hf.evaluation.edit_evaluator import EditEvaluator, EditRecord, Request, edit_record, mean_of_moved
from editable_hf.evaluation.translator import Translator, edits_together, reaches_encoder
from editable_hf.evaluation.two_way import resampled_means


class BleuDrawdownEvaluator(EditEvaluator):
    """Measures edits of one translation model over one test set.

    The unedited model is scored once; after each edit every test sentence is translated again, and BLEU is computed
    from the sentence statistics, so that it equals sacrebleu's corpus score of the edited model.

    `evaluate` takes the option `length_penalty`, the exponent of the length normalization in `l_e` (default 0). Its
    records also have the translation `before` and `after` of the request's source, `verified` (beam search on the
    edited model gives the target), `bleu` and `bleu_detok` of the edited model (0-100), and `changed` (index and new
    translation of each test sentence that changed).

    Args:
        model: The model to edit; it is left as it was.
        tokenizer: Its tokenizer.
        sources: Test sentences as the model sees them.
        references: Their references, Moses-tokenized.
        reference_texts: Their references as ordinary text, for detokenized BLEU.
        target_lang: Language of the references.
        raw_text: The model writes plain text: `bleu` is then the same as `bleu_detok`.
        layers: What an edit may move.
        num_beams: Beam size.
        batch_size: Sentences decoded together.
    """

    request_keys = ("id", "source", "target")

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[str],
        references: Sequence[str],
        reference_texts: Sequence[str],
        *,
        target_lang: str = "en",
        raw_text: bool = False,
        layers: str | Iterable[str] = "last_decoder_layer",
        num_beams: int = 5,
        batch_size: int = 64,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.layers = list(select_parameters(model, layers))
        self._options = {"num_beams": num_beams, "keep_encoded": not reaches_encoder(model, self.layers)}
        self._translator = Translator(model, tokenizer, sources, batch_size=batch_size, **self._options)
        self._tokens = CorpusBleu(references, tokenize="13a" if raw_text else "none")
        self._texts = CorpusBleu(reference_texts, tokenize="13a")
        detokenize = str if raw_text else MosesPreprocessor(target_lang).detokenize
        self._detokenize = lru_cache(maxsize=4 * len(sources))(detokenize)  # of few edits: most outputs are unedited
        self.group_size = edits_together(model, self.layers)
        self.before = self._translator(progress="unedited model")
        self.bleu, self.bleu_detok = self._score(self.before)
        self.num_sentences = len(self.before)

    def _score(self, translations: Sequence[str]) -> tuple[float, float]:
        # Both remember the sentences they have seen, so only the translations that an edit changed cost anything.
        tokens = self._tokens.sentence_statistics(translations)
        texts = self._texts.sentence_statistics([self._detokenize(text) for text in translations])
        return self._tokens.score(tokens), self._texts.score(texts)

    def _measure(
        self,
        requests: Sequence[Request],
        editor: Editor,
        max_steps: int,
        progress: str | None,
        length_penalty: float = 0.0,
    ) -> list[EditRecord]:
        results, times = [], []
        for request in requests:
            start = time.perf_counter()
            constraint = request_constraint(request, self.model, length_penalty).to(self.model.device)
            results.append(edit(self.model, constraint, editor, self.layers, max_steps))
            times.append(time.perf_counter() - start)
        moved = [result.params for result in results if result.num_steps > 0]
        outputs = iter(self._translator.after_edits(moved, progress if len(requests) > 1 else None))
        # The edited sentences of the group, too: which of them an edit is for is picked below.
        own = Translator(self.model, self.tokenizer, [request["source"] for request in requests], **self._options)
        before, own_outputs = own(), iter(own.after_edits(moved))
        records = []
        for index, (request, result, seconds) in enumerate(zip(requests, results, times, strict=True)):
            translations, own_after = self.before, before
            if result.num_steps > 0:
                translations, own_after = next(outputs), next(own_outputs)
            texts = before[index], own_after[index]
            records.append(self._record(request, result, texts, translations, seconds))
        return records

    def _record(
        self,
        request: Request,
        result: EditResult,
        texts: tuple[str, str],
        translations: Sequence[str],
        seconds: float,
    ) -> EditRecord:
        before, after = texts
        changed = [index for index, text in enumerate(translations) if text != self.before[index]]
        bleu, bleu_detok = self._score(translations)
        return {
            **edit_record(request, self.request_keys, result, seconds),
            "before": before,
            "after": after,
            "verified": after == request["target"],
            "bleu": bleu,
            "bleu_detok": bleu_detok,
            "num_changed": len(changed),
            "changed": [{"index": index, "after": translations[index]} for index in changed],
        }

    def summarize(self, name: str, records: Sequence[EditRecord], **extra: Any) -> dict[str, Any]:
        """One row of Table 6 from the records of [`evaluate`], with 95% bootstrap intervals.

        Those of drawdowns are over edits and test sentences together, all others over the edits.

        Args:
            name: Name of the row.
            records: What `evaluate` returned.
            extra: Further entries of the row.

        Returns:
            `bleu`, `bleu_detok`, `bleu_drawdown` (mean absolute difference to the unedited model, BLEU points),
            `bleu_drawdown_signed` (mean of before - after), `bleu_drawdown_moved` (mean over the edits that took a
            step), `success_rate` and `verified_rate` (fractions),
            `num_steps`, `already_satisfied` (fraction with 0 steps), `num_edits`, `num_sentences`, `outputs_changed`
            (mean fraction of test sentences), `edit_seconds`; intervals under `intervals`.
        """
        scores = {"bleu": self.bleu, "bleu_detok": self.bleu_detok, "num_sentences": self.num_sentences}
        moved = mean_of_moved(self._columns(records)["bleu_drawdown"], records)
        return self._summary(name, records, **scores, bleu_drawdown_moved=moved, **extra)

    def resampled(self, records: Sequence[EditRecord]) -> dict[str, np.ndarray]:
        """Mean drawdowns for resampled edits and test sentences, see [`resampled_means`], by key of the row."""
        texts = self._texts.sentence_statistics([self._detokenize(text) for text in self.before])
        tokens = self._tokens.sentence_statistics(self.before)
        of_tokens, of_texts = [], []
        for record in records:
            indices = [change["index"] for change in record["changed"]]
            after = [change["after"] for change in record["changed"]]
            of_tokens.append(self._tokens.changes(tokens, indices, after))
            of_texts.append(self._texts.changes(texts, indices, [self._detokenize(text) for text in after]))
        return {
            "bleu_drawdown": resampled_means(tokens, of_tokens, bleu_of_sums),
            "bleu_drawdown_signed": resampled_means(tokens, of_tokens, bleu_of_sums, np.positive),
            "bleu_detok_drawdown": resampled_means(texts, of_texts, bleu_of_sums),
        }

    def _columns(self, records: Sequence[EditRecord]) -> dict[str, list[float]]:
        differences = [self.bleu - record["bleu"] for record in records]
        return {
            "bleu_drawdown": [abs(value) for value in differences],
            "bleu_drawdown_signed": differences,
            "bleu_detok_drawdown": [abs(self.bleu_detok - record["bleu_detok"]) for record in records],
            "verified_rate": [record["verified"] for record in records],
            "outputs_changed": [record["num_changed"] / self.num_sentences for record in records],
        }
