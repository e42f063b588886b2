"""A review of a glossary's patch counts its terms in unseen sentences, and what changed without any."""

import json

import pytest

from editable_hf import EditorConfig
from editable_hf.cli import main
from editable_hf.review.page import format_html
from editable_hf.review.review import Review
from editable_hf.review.terms import TermCount, TermReview, review_terms, terms_of
from editable_hf.review.text import format_markdown, format_terminal
from editable_hf.terms.glossary import Term

DOG, TOWN = Term(("hund",), ("mutt",), ("dog",)), Term(("stadt",), ("town",))


def test_terms_are_counted_apart_from_the_others():
    sources = ["der hund", "ein hund ", "hund und stadt", "das haus", "der zug"]
    before = ["the dog", "a dog", "dog and town", "the house", "the train"]
    after = ["the mutt", "a mutt", "dog and town", "the house", "the plane"]
    found = review_terms([DOG, TOWN], sources, before, after, edited_sources=["ein hund"])
    assert found == TermReview([TermCount("hund = mutt", 2, 0, 1), TermCount("stadt = town", 1, 1, 1)], 2, 1)


STATE = {"source": ["hund"], "target": ["mutt"], "replaces": ["dog"]}


@pytest.mark.parametrize(
    ("metrics", "terms"),
    [
        ({"terms": [{**STATE, "edited": 4}]}, [DOG]),
        ({}, []),
        ({"terms": 5}, []),
        ({"terms": [5]}, []),
        ({"terms": [{**STATE, "source": []}]}, []),
        ({"terms": [{**STATE, "replaces": "dog"}]}, []),
        ({"terms": [{**STATE, "target": ["?"]}]}, []),
        ({"terms": [{**STATE, "target": [1]}]}, []),
    ],
)
def test_terms_of_a_patch_from_anywhere(metrics, terms):
    assert terms_of(metrics) == terms


@pytest.mark.parametrize("metric", [None, 30.0])
def test_all_formats_have_the_terms(metric):
    terms = TermReview([TermCount("hund\x1b = <mutt>", 1234, 7, 1200)], 5000, 21)
    review = Review("translation", "fix", "m", "t", "BLEU", "", metric, metric, 6234, [], terms)
    texts = [format_terminal(review), format_markdown(review), format_html(review)]
    for text in texts:
        assert "1,200" in text and "1,234" in text and "21" in text and "5,000" in text
        assert "\x1b" not in texts[0] and "<mutt>" not in texts[1] + texts[2]
    assert "7 -> 1,200 of 1,234 unseen sentences right" in texts[0]
    assert "21 of 5,000 sentences without a term of the glossary changed" in texts[0]
    without = Review("translation", "fix", "m", "t", "BLEU", "", metric, metric, 6234, [])
    assert "unseen" not in format_terminal(without) + format_html(without)


def test_diff_shows_the_terms(translator_folder, sentence_pairs, tmp_path, capsys):
    EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60).save_pretrained(translator_folder)
    model, patch, corpus = str(translator_folder), str(tmp_path / "patch"), tmp_path / "corpus.txt"
    glossary = tmp_path / "glossary.tsv"
    glossary.write_text("hund\tthe woman\tthe dog\n")
    corpus.write_text("".join(f"{text}\n" for text in sentence_pairs[0]))
    assert main(["terms", model, str(glossary), "--corpus", str(corpus), "-o", patch]) == 0
    capsys.readouterr()
    assert main(["diff", model, patch, "--data", str(corpus), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (term,), edited = found["terms"]["terms"], {change["index"] for change in found["changes"] if change["edited"]}
    with_term = {number for number, text in enumerate(sentence_pairs[0]) if "hund" in text}
    changed = {change["index"] for change in found["changes"]}
    assert term["term"] == "hund = the woman" and term["num_sentences"] == len(with_term - edited) < len(with_term)
    assert term["right_after"] > term["right_before"] == 0
    assert found["terms"]["num_others"] == 200 - len(with_term)
    assert found["terms"]["num_others_changed"] == len(changed - with_term)
