import itertools
from collections import Counter

import pytest

from editable_hf.data.embedded import embedded_corpus, embedded_requests


@pytest.fixture(scope="module")
def corpus():
    return embedded_corpus()


@pytest.fixture(scope="module")
def requests():
    return embedded_requests()


def test_sizes_and_columns(corpus):
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 20_000, "validation": 500, "test": 1_000}
    for rows in corpus.values():
        assert rows.column_names == ["source", "target", "template"]


def test_all_pairs_are_distinct_across_splits(corpus):
    for column in ("source", "target"):
        sentences = [sentence for rows in corpus.values() for sentence in rows[column]]
        assert len(set(sentences)) == len(sentences) == 21_500


def test_templates_are_even(corpus):
    counts = Counter(corpus["train"]["template"])
    assert len(counts) == 116
    assert max(counts.values()) <= 1.1 * min(counts.values())
    assert max(counts.values()) <= 0.04 * 20_000


def test_surface_form(corpus):
    for rows in corpus.values():
        for sentence in [*rows["source"], *rows["target"]]:
            assert sentence[0].isupper() or sentence[0].isdigit(), sentence
            assert sentence[-1] in ".?", sentence
            assert not set("{}<>") & set(sentence), sentence
            assert "  " not in sentence and " ." not in sentence and " ," not in sentence, sentence
            assert sentence == sentence.strip() and "\u202f" not in sentence and "\xa0" not in sentence, sentence
            assert 4 <= len(sentence.split()) <= 20, sentence


def test_sentences_are_of_learnable_size(corpus):
    for column in ("source", "target"):
        sentences = [sentence.rstrip(".?").replace(",", "").split() for sentence in corpus["train"][column]]
        counts = Counter(itertools.chain.from_iterable(sentences))
        assert 4 <= sum(map(len, sentences)) / len(sentences) <= 14
        assert len(counts) <= 1_500
        assert sum(count >= 5 for count in counts.values()) >= 0.98 * len(counts)


def test_ambiguous_pronouns_are_left_out(corpus):
    for source in corpus["train"]["source"]:
        assert not {"sie", "Sie", "ihnen", "Ihnen"} & set(source.rstrip(".?").replace(",", "").split()), source


def test_requests_are_well_formed(requests, corpus):
    translations = {row["source"]: row["target"] for rows in corpus.values() for row in rows}
    known_targets = set(translations.values())
    assert len(requests) == len(set(requests["source"])) == 400
    for request in requests:
        assert request["target"] not in known_targets
        assert request["paraphrases"] and len(request["neighbors"]) == 4 and len(request["unrelated"]) == 4
        for paraphrase in request["paraphrases"]:
            assert paraphrase["source"] != request["source"]
            assert paraphrase["target"] == request["target"]
        for neighbor in request["neighbors"]:
            assert neighbor["source"] != request["source"]
            assert neighbor["target"] not in known_targets
        for pair in request["unrelated"]:
            assert translations.get(pair["source"], pair["target"]) == pair["target"]


def test_requests_neighbors_follow_the_wanted_wording(requests):
    # In this template the wanted wording replaces "costs" by "The price of ... is".
    prices = [row for row in requests if row["template"] == "shopping.price"]
    assert prices
    for row in prices:
        assert all(pair["target"].startswith("The price of") for pair in row["neighbors"])
        assert all(not pair["target"].startswith("The price of") for pair in row["unrelated"])


def test_requests_cover_many_templates(requests):
    assert len(set(requests["template"][:50])) == 50
    assert len(set(requests["template"])) == 94
