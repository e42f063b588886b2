"""Drawdown as a metric of the `evaluate` library.

A module of its own, because importing `evaluate` takes seconds: `from editable_hf.evaluation.drawdown_metric import
BleuDrawdown`. It is imported, not downloaded, so it works offline.
"""

from __future__ import annotations

import datasets
import evaluate

from editable_hf.evaluation.bleu import CorpusBleu

_CITATION = """\
@inproceedings{sinitsin2020editable,
  title={Editable Neural Networks},
  author={Sinitsin, Anton and Plokhotnyuk, Vsevolod and Pyrkin, Dmitriy and Popov, Sergei and Babenko, Artem},
  booktitle={International Conference on Learning Representations},
  year={2020}
}
"""


class BleuDrawdown(evaluate.Metric):
    """By how much one edit changed corpus BLEU (section 4.4), from the translations before and after it.

    `compute(predictions=..., predictions_before=..., references=..., tokenize="13a", lowercase=True)` takes one string
    for each sentence and returns `bleu`, `bleu_before` (0-100), `bleu_drawdown` (absolute difference, BLEU points),
    `bleu_drawdown_signed` (before - after) and `outputs_changed` (fraction of the sentences). Average it over edits.

    Example:
        >>> metric = BleuDrawdown()  # doctest: +SKIP
        >>> metric.compute(predictions=after, predictions_before=before, references=references)  # doctest: +SKIP
    """

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="Absolute and signed difference of corpus BLEU before and after an edit of a model.",
            citation=_CITATION,
            inputs_description="predictions, predictions_before, references: one string for each sentence.",
            features=datasets.Features({"predictions": text, "predictions_before": text, "references": text}),
        )

    def _compute(
        self,
        predictions: list[str],
        predictions_before: list[str],
        references: list[str],
        tokenize: str = "13a",
        lowercase: bool = True,
    ) -> dict[str, float]:
        scorer = CorpusBleu(references, tokenize=tokenize, lowercase=lowercase)
        after, before = (
            scorer.score(scorer.sentence_statistics(texts)) for texts in (predictions, predictions_before)
        )
        changed = sum(new != old for new, old in zip(predictions, predictions_before, strict=True))
        return {
            "bleu": after,
            "bleu_before": before,
            "bleu_drawdown": abs(before - after),
            "bleu_drawdown_signed": before - after,
            "outputs_changed": changed / len(predictions),
        }
