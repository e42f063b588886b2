from __future__ import annotations

import pytest

from editable_hf import rmsprop
from editable_hf.evaluation.bleu_evaluator import BleuDrawdownEvaluator
from editable_hf.experiments.showcase import format_showcase, showcase

ALPHA, STEPS = 5e-3, 4


@pytest.fixture
def test_set(sentence_pairs):
    return sentence_pairs[0][:12], sentence_pairs[1][:12]


@pytest.fixture
def evaluator(trained_marian, tokenizer, test_set):
    sources, references = test_set
    return BleuDrawdownEvaluator(trained_marian, tokenizer, sources, references, references, num_beams=3)


def test_showcase(evaluator, test_set):
    sources, references = test_set
    references = [references[0], references[4], *references[2:]]  # a mistake that the model is sure of
    first_wrong = next(i for i in range(len(sources)) if evaluator.before[i] != references[i])
    record = showcase(evaluator, sources, references, rmsprop(ALPHA), max_steps=STEPS, num_alternatives=4)
    assert (record["source"], record["target"]) == (sources[first_wrong], references[first_wrong])
    assert record["bleu_before"] == evaluator.bleu
    assert record["reference_index"] == first_wrong
    changed = {change["index"]: change["after"] for change in record["changed"]}
    before = evaluator.before[first_wrong]
    assert (record["before"], record["after"]) == (before, changed.get(first_wrong, before))
    assert record["num_steps"] > 0 and changed
    others = {sources.index(other["source"]): other for other in record["others"]}
    assert set(others) == set(changed) - {first_wrong}
    for index, other in others.items():
        expected = {"source": sources[index], "reference": references[index], "before": evaluator.before[index]}
        assert other == {**expected, "after": changed[index]}
    text = format_showcase(record)
    for part in (record["source"], record["before"], record["target"], "l_e <= 0 reached in"):
        assert part in text


def test_showcase_passes_over_what_no_edit_mends(evaluator, test_set):
    sources, references = test_set
    options = {"max_steps": STEPS, "num_alternatives": 4}
    assert showcase(evaluator, sources, evaluator.before, rmsprop(ALPHA), **options) is None  # nothing is wrong
    best, too_long = evaluator.before[0], " ".join(["the dog sees the house ."] * 10)
    # As if beam search had missed the likeliest translation of the first sentence.
    evaluator.before = ["missed", *evaluator.before[1:]]
    for reference, count in ((best, 4), (best, 1), (too_long, 4)):
        right = [reference, *evaluator.before[1:]]
        options["num_alternatives"] = count
        assert showcase(evaluator, sources, right, rmsprop(ALPHA), **options) is None
    wrong = [best, references[4], *evaluator.before[2:]]
    record = showcase(evaluator, sources, wrong, rmsprop(ALPHA), max_steps=STEPS, num_alternatives=4)
    assert record["reference_index"] == 1 and record["loss_before"] > 0
    assert "No edit to show" in format_showcase(None)


def test_showcase_text_shows_some_others():
    other = {"source": "s", "before": "b", "after": "a", "reference": "r"}
    record = {"source": "x", "before": "y", "target": "z", "after": "z", "success": False, "num_steps": 3}
    record |= {"edit_seconds": 0.1, "bleu_before": 30.0, "bleu": 29.5, "others": [other] * 5}
    text = format_showcase(record, max_others=2)
    assert text.count("reference  r") == 2 and "and 3 more" in text
    assert "l_e <= 0 NOT reached in 3 steps" in text and "30.00 -> 29.50" in text
    assert "more in" not in format_showcase(record, max_others=5)
