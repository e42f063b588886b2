import numpy as np
import pytest
import sacrebleu

from editable_hf.evaluation.bleu import CorpusBleu

REFERENCES = [
    "we &apos;re all born . we all bring our children into the world .",
    "&quot; why not ? &quot; he said .",
    "it &apos;s the r &amp; d piece .",
    "yes .",
]
HYPOTHESES = [
    "we &apos;re all born . we bring the children into the world .",
    "&quot; why ? &quot; he said .",
    "",
    "yes .",
]


def score(hypotheses, references, **options):
    bleu = CorpusBleu(references, **options)
    return bleu.score(bleu.sentence_statistics(hypotheses))


@pytest.mark.parametrize("tokenize", ["none", "13a"])
def test_score_is_sacrebleus(tokenize):
    expected = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize=tokenize, lowercase=True, force=True).score
    assert score(HYPOTHESES, REFERENCES, tokenize=tokenize) == expected
    assert 0 < expected < 100


def test_perfect_translations_score_100_in_lower_case():
    assert score([text.upper() for text in REFERENCES[:2]], REFERENCES[:2]) == pytest.approx(100)


def test_score_by_hand():
    # Matches 4/5, 3/4, 2/3 and 1/2; no brevity penalty.
    assert score(["a b c d e"], ["a b c d f"]) == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def random_corpus(num_sentences, seed):
    rng = np.random.default_rng(seed)
    words = np.array(["the", "cat", "sat", "on", "a", "mat", ",", ".", "&apos;s", "Dog"])
    return [" ".join(rng.choice(words, rng.integers(0, 15))) for _ in range(num_sentences)]


@pytest.mark.parametrize("tokenize", ["none", "13a"])
@pytest.mark.parametrize("seed", range(5))
def test_score_from_statistics_equals_sacrebleu_exactly(tokenize, seed):
    references, hypotheses = random_corpus(60, seed), random_corpus(60, seed + 100)
    bleu = CorpusBleu(references, tokenize=tokenize)
    rows = bleu.sentence_statistics(hypotheses)
    assert rows.shape == (60, 10) and rows.dtype == np.int64

    def expected(hypotheses, references):
        return sacrebleu.corpus_bleu(hypotheses, [references], tokenize=tokenize, lowercase=True, force=True).score

    assert bleu.score(rows) == expected(hypotheses, references)
    assert bleu.score(rows[10:30]) == expected(hypotheses[10:30], references[10:30])
    hypotheses[7] = references[7] + " the end"
    assert bleu.score(bleu.sentence_statistics(hypotheses)) == expected(hypotheses, references)


def test_case_counts_if_asked():
    bleu = CorpusBleu(["A b c d e"], lowercase=False)
    assert bleu.sentence_statistics(["a b c d e"])[0].tolist() == [5, 5, 4, 3, 2, 1, 5, 4, 3, 2]


def test_only_changed_sentences_are_counted_again(monkeypatch):
    bleu = CorpusBleu(REFERENCES)
    counted = []
    original = sacrebleu.BLEU.corpus_score
    monkeypatch.setattr(
        sacrebleu.BLEU, "corpus_score", lambda self, hyps, refs: counted.append(hyps[0]) or original(self, hyps, refs)
    )
    first = bleu.sentence_statistics(HYPOTHESES)
    first[:] = 0  # the caller's own array: what is remembered stays
    changed = [*HYPOTHESES[:3], "yes , yes ."]
    rows = bleu.sentence_statistics(changed)
    assert counted == [*HYPOTHESES, "yes , yes ."]
    assert bleu.score(rows) == score(changed, REFERENCES)


def test_all_empty_translations_score_zero():
    assert score([""] * 4, REFERENCES) == 0


def test_different_lengths_are_an_error():
    with pytest.raises(ValueError, match="got 1 hypotheses and 4 references"):
        CorpusBleu(REFERENCES).sentence_statistics(["a"])
    with pytest.raises(ValueError, match="got 5 hypotheses and 4 references"):
        CorpusBleu(REFERENCES).sentence_statistics([*HYPOTHESES, "a"])


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="at least one, but got 0 hypotheses"):
        CorpusBleu([]).sentence_statistics([])
    with pytest.raises(ValueError, match="at least one sentence, but got none"):
        CorpusBleu(REFERENCES).score(np.zeros((0, 10), dtype=np.int64))
