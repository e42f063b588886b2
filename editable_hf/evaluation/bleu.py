"""Corpus BLEU, fast for translations of which few change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from sacrebleu.metrics import BLEU

from editable_hf.evaluation.two_way import Changes

_NGRAM_ORDER = 4
_REMEMBERED = 4  # translations of each sentence: the unedited model's, and those that several edits lead to


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """Corpus BLEU, 0-100, of many test sets at once: what `BLEU.compute_bleu` gives for each row.

    Args:
        sums: `(num_sets, 10)`, sums of what [`CorpusBleu.sentence_statistics`] counts.
    """
    hypothesis_length, reference_length = sums[:, 0], sums[:, 1]
    correct, total = sums[:, 2 : 2 + _NGRAM_ORDER], sums[:, 2 + _NGRAM_ORDER :]
    # "exp" smoothing: the k-th order without a match counts 1 / 2**k matches.
    smoothed = np.where(correct > 0, correct, 0.5 ** np.cumsum(correct == 0, axis=1))
    some = (total > 0).all(1) & (correct > 0).any(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.log(100 * smoothed / total).mean(1)
        brevity = np.minimum(0.0, 1 - reference_length / hypothesis_length)
        return np.where(some, np.exp(mean + brevity), 0.0)


class CorpusBleu:
    """Corpus BLEU from per-sentence statistics, for many sets of translations that differ in few sentences.

    Corpus BLEU depends on the translations only through sums over sentences, so after an edit only the sentences
    whose translation changed are counted anew. Scores equal sacrebleu's exactly.

    Args:
        references: One reference for each sentence.
        tokenize: sacrebleu's tokenizer: "none" for Moses tokens, "13a" for plain text.
        lowercase: Whether case is ignored.

    Example:
        >>> bleu = CorpusBleu(["the cat sat on the mat ."])
        >>> bleu.score(bleu.sentence_statistics(["the cat sat on the mat ."]))
        100.00000000000004
    """

    def __init__(self, references: Sequence[str], tokenize: str = "none", lowercase: bool = True):
        # One scorer for each sentence, so that sacrebleu caches the n-grams of its reference.
        self._scorers = [
            BLEU(lowercase=lowercase, tokenize=tokenize, force=True, references=[[reference]])
            for reference in references
        ]
        self._cached_row = lru_cache(maxsize=_REMEMBERED * len(references))(self._row)

    def __len__(self) -> int:
        return len(self._scorers)

    def sentence_statistics(self, hypotheses: Sequence[str]) -> np.ndarray:
        """What BLEU counts in each sentence, remembered for the last few translations of it.

        Args:
            hypotheses: One translation for each reference; may be empty strings.

        Returns:
            int64 array `(num_sentences, 10)`: hypothesis length, reference length, matching n-grams of order 1 to 4,
            n-grams of order 1 to 4. It is the caller's to change.

        Raises:
            ValueError: If there are not as many hypotheses as references, or none.
        """
        # Too few would be scored against the first references without a word.
        if len(hypotheses) != len(self) or len(hypotheses) == 0:
            raise ValueError(
                f"Expected a hypothesis for each reference, at least one, but got {len(hypotheses):,} hypotheses and "
                f"{len(self):,} references; translate the whole test set before scoring."
            )
        return np.array([self._cached_row(i, hypothesis) for i, hypothesis in enumerate(hypotheses)], dtype=np.int64)

    def score(self, rows: np.ndarray) -> float:
        """Corpus BLEU, 0-100, of the sentences whose statistics are given.

        Args:
            rows: `(num_sentences, 10)` from [`sentence_statistics`], any subset and order.

        Raises:
            ValueError: If there are no rows.
        """
        if len(rows) == 0:
            raise ValueError("Expected the statistics of at least one sentence, but got none.")
        hypothesis_length, reference_length, *counts = rows.sum(axis=0).tolist()
        return BLEU.compute_bleu(
            correct=counts[:_NGRAM_ORDER],
            total=counts[_NGRAM_ORDER:],
            sys_len=hypothesis_length,
            ref_len=reference_length,
            smooth_method="exp",  # what BLEU.corpus_score uses unless told otherwise
        ).score

    def changes(self, before: np.ndarray, indices: Sequence[int], hypotheses: Sequence[str]) -> Changes:
        """What other translations of some sentences change in the statistics `before` of all."""
        if not indices:
            return Changes(np.empty(0, dtype=np.int64), np.empty((0, before.shape[1]), dtype=np.int64))
        rows = [self._cached_row(index, text) for index, text in zip(indices, hypotheses, strict=True)]
        chosen = np.asarray(indices)
        return Changes(chosen, np.array(rows, dtype=np.int64) - before[chosen])

    def _row(self, index: int, hypothesis: str) -> tuple[int, ...]:
        result = self._scorers[index].corpus_score([hypothesis], None)
        return (result.sys_len, result.ref_len, *result.counts, *result.totals)
