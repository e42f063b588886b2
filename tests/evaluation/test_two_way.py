"""Intervals over edits and test examples against a bootstrap that makes every test set anew."""

from __future__ import annotations

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from editable_hf.evaluation.bleu import CorpusBleu, bleu_of_sums
from editable_hf.evaluation.two_way import Changes, interval_of, ratio_of, resampled_means

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat"]


def sentences(rng, count):
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 12))) for _ in range(count)]


def test_bleu_of_sums_is_sacrebleus():
    rng = np.random.default_rng(0)
    references, hypotheses = sentences(rng, 40), sentences(rng, 40)
    hypotheses[0], hypotheses[1] = "", references[1]
    bleu = CorpusBleu(references)
    rows = bleu.sentence_statistics(hypotheses)
    sums = np.stack([rows[:end].sum(0) for end in range(1, 41)] + [rows[index] for index in range(40)])
    expected = [
        BLEU.compute_bleu(list(row[2:6]), list(row[6:]), row[0], row[1], smooth_method="exp").score for row in sums
    ]
    np.testing.assert_allclose(bleu_of_sums(sums), expected, rtol=1e-9)
    assert expected[0] == 0 < expected[-1]


@pytest.mark.parametrize("measure", [np.abs, np.positive])
def test_samples_are_those_of_test_sets_made_anew(measure):
    rng = np.random.default_rng(1)
    references, before = sentences(rng, 15), sentences(rng, 15)
    before[:8] = references[:8]
    bleu, changed = CorpusBleu(references), [[0, 3, 9], [], [4]]
    counts = bleu.sentence_statistics(before)
    translations = [
        [text if index not in which else sentences(rng, 1)[0] for index, text in enumerate(before)]
        for which in changed
    ]
    edits = [
        bleu.changes(counts, which, [texts[index] for index in which])
        for which, texts in zip(changed, translations, strict=True)
    ]
    found = resampled_means(counts, edits, bleu_of_sums, measure, num_samples=50, seed=3)

    rng = np.random.default_rng(3)
    test_sets = [rng.integers(15, size=15) for _ in range(50)]
    expected = []
    for test_set, chosen in zip(test_sets, rng.integers(3, size=(50, 3)), strict=True):

        def score(texts, test_set=test_set):
            return BLEU(lowercase=True, tokenize="none", force=True).corpus_score(
                [texts[index] for index in test_set], [[references[index] for index in test_set]]
            )

        of_unedited = score(before).score
        expected.append(np.mean([measure(of_unedited - score(translations[edit]).score) for edit in chosen]))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert found.std() > 0


def error_rate(size):
    return lambda sums: sums[:, 0] / size


def test_intervals_cover_other_test_sets_where_those_over_edits_do_not():
    """Each edit spoils the same 5% of a population of images: what varies is how many are in the test set."""
    rng, covered, size = np.random.default_rng(2), 0, 100
    for _ in range(100):
        spoiled = np.flatnonzero(rng.random(size) < 0.05)
        edit = Changes(spoiled, np.ones((len(spoiled), 1), dtype=np.int64))
        samples = resampled_means(np.zeros((size, 1), dtype=np.int64), [edit] * 20, error_rate(size), num_samples=200)
        _, low, high = interval_of(len(spoiled) / size, samples)  # over the edits alone it has no width
        covered += low <= 0.05 <= high
    assert 80 <= covered <= 100


def test_ratio_of_a_constant_multiple_has_no_width():
    samples = np.random.default_rng(0).random(100) + 0.1
    assert ratio_of(0.2, 0.4 * samples, 0.5, samples) == pytest.approx((0.4, 0.4, 0.4))
    with pytest.raises(ValueError, match="positive drawdown below"):
        ratio_of(0.2, samples, 0.0, samples)
