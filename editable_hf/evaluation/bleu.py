"""BLEU, as the paper reports it and as others can compare with, and fast for outputs that change little."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sacrebleu.metrics import BLEU

from editable_hf.data.moses import MosesPreprocessor

_NGRAM_ORDER = 4
_MAX_CACHED_SENTENCES = 2**18


class BleuScores(NamedTuple):
    """Two corpus BLEU scores of the same translations.

    Attributes:
        bleu: On lower-cased Moses tokens, as the paper's, BLEU points 0-100.
        bleu_detok: On detokenised text with sacrebleu's own tokenisation (13a), lower-cased, BLEU points 0-100.
        signature: sacrebleu's description of `bleu`.
        signature_detok: sacrebleu's description of `bleu_detok`.
    """

    bleu: float
    bleu_detok: float
    signature: str
    signature_detok: str


def corpus_bleu(
    hypotheses: Sequence[str], references: Sequence[str], reference_texts: Sequence[str], language: str = "en"
) -> BleuScores:
    """Corpus BLEU of translations, tokenised and detokenised.

    Args:
        hypotheses: The model's translations, `(num_sentences,)`: Moses tokens separated by spaces. May be empty.
        references: Their references in the same form (column `target`).
        reference_texts: Their references as plain text (column `target_text`), which the detokenised hypotheses are
            compared with.
        language: Language of the translations, for detokenisation.

    Raises:
        ValueError: If the lengths differ or there is no sentence.
    """
    _check_lengths(hypotheses, references)
    _check_lengths(hypotheses, reference_texts)
    preprocessor = MosesPreprocessor(language)
    # `force` only silences the hint that text looks tokenised, which it is.
    tokens, plain = BLEU(lowercase=True, tokenize="none", force=True), BLEU(lowercase=True)
    score = tokens.corpus_score(list(hypotheses), [list(references)]).score
    texts = [preprocessor.detokenize(hypothesis) for hypothesis in hypotheses]
    score_detok = plain.corpus_score(texts, [list(reference_texts)]).score
    return BleuScores(score, score_detok, str(tokens.get_signature()), str(plain.get_signature()))


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
        self._cached_row = lru_cache(maxsize=_MAX_CACHED_SENTENCES)(self._row)

    def __len__(self) -> int:
        return len(self._scorers)

    def sentence_statistics(self, hypotheses: Sequence[str]) -> np.ndarray:
        """What BLEU counts in each sentence, remembered for each distinct translation of it.

        Args:
            hypotheses: One translation for each reference; may be empty strings.

        Returns:
            int64 array `(num_sentences, 10)`: hypothesis length, reference length, matching n-grams of order 1 to 4,
            n-grams of order 1 to 4. It is the caller's to change.

        Raises:
            ValueError: If there are not as many hypotheses as references.
        """
        _check_lengths(hypotheses, self._scorers)
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

    def _row(self, index: int, hypothesis: str) -> tuple[int, ...]:
        result = self._scorers[index].corpus_score([hypothesis], None)
        return (result.sys_len, result.ref_len, *result.counts, *result.totals)


def _check_lengths(hypotheses: Sequence[str], references: Sequence) -> None:
    # sacrebleu zips the two and would score the common part without a word.
    if len(hypotheses) != len(references) or len(hypotheses) == 0:
        raise ValueError(
            f"Expected one reference for each hypothesis, at least one, but got {len(hypotheses):,} hypotheses and "
            f"{len(references):,} references; translate the whole test set before scoring."
        )
