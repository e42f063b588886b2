"""A row of the image tables and the ratio of two, against bootstraps that put every test set together anew."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_images import NUM_CLASSES, image_rows, tiny_extra, tiny_resnet

from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.evaluation.two_way import ratio_of

NUM_IMAGES = 23


@pytest.fixture(scope="module")
def test_set():
    return image_rows(NUM_IMAGES, seed=1)


def record_of(evaluator, changed, **entries):
    """The record of an edit after which some images have other classes."""
    predictions = evaluator.before.clone()
    for index, label in changed:
        predictions[index] = label
    record = {"success": True, "target": 2, "after": 2, "edit_seconds": 0.5, "num_steps": 3, "changed": changed}
    error_rate = evaluator.error_rate_of(predictions)
    return {**record, "error_rate": error_rate, "num_changed": len(changed), **entries}


def resampled_by_hand(evaluator, records, num_samples=1000):
    """Mean drawdowns of test sets and sets of edits that are put together anew, image by image."""
    rng, labels = np.random.default_rng(0), evaluator.labels.tolist()
    unedited = evaluator.before.tolist()
    after = [[dict(record["changed"]).get(i, old) for i, old in enumerate(unedited)] for record in records]
    test_sets = [rng.integers(len(labels), size=len(labels)) for _ in range(num_samples)]
    means = []
    for test_set, chosen in zip(test_sets, rng.integers(len(records), size=(num_samples, len(records))), strict=True):

        def wrong(predictions, test_set=test_set):
            return sum(predictions[index] != labels[index] for index in test_set) / len(labels)

        before, rates = wrong(unedited), [wrong(predictions) for predictions in after]
        means.append(sum(abs(rates[edit] - before) for edit in chosen) / len(records))
    return np.array(means)


def some_records(evaluator):
    """Edits that spoil two images, mend one, change none, and make a wrong class another wrong one and spoil one."""
    labels, before = evaluator.labels.tolist(), evaluator.before.tolist()
    right = [index for index, label in enumerate(labels) if label == before[index]]
    wrong = [index for index, label in enumerate(labels) if label != before[index]]
    other = [next(c for c in range(NUM_CLASSES) if c not in pair) for pair in zip(labels, before, strict=True)]
    last = [[index, other[index]] for index in (wrong[1], right[0])]
    return [
        record_of(evaluator, [[index, other[index]] for index in right[:2]]),
        record_of(evaluator, [[wrong[0], labels[wrong[0]]]], num_steps=5),
        record_of(evaluator, [], num_steps=0),
        record_of(evaluator, last, num_steps=10, success=False, after=1),
    ]


def test_summary(test_set):
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), test_set)
    records = some_records(evaluator)
    row = evaluator.summarize("ours", records, layers="chain3")
    expected = {
        "name": "ours",
        "layers": "chain3",
        "error_rate": evaluator.error_rate,
        "drawdown": (2 + 1 + 0 + 1) / NUM_IMAGES / 4,
        "drawdown_signed": (2 - 1 + 0 + 1) / NUM_IMAGES / 4,
        "drawdown_moved": (2 + 1 + 1) / NUM_IMAGES / 3,  # the third edit took no step
        "success_rate": 0.75,
        "verified_rate": 0.75,
        "num_steps": 18 / 4,
        "already_satisfied": 0.25,
        "outputs_changed": 5 / 4 / NUM_IMAGES,
        "edit_seconds": 0.5,
        "num_failures": 0,
        "num_edits": 4,
        "num_images": NUM_IMAGES,
    }
    intervals = row.pop("intervals")
    assert set(row) == set(expected)
    assert row == pytest.approx(expected)
    by_hand = np.percentile(resampled_by_hand(evaluator, records), [2.5, 97.5])
    assert intervals["drawdown"] == pytest.approx(by_hand.tolist())
    assert intervals["drawdown"][0] < row["drawdown"] < intervals["drawdown"][1]
    assert all(low <= row[key] <= high for key, (low, high) in intervals.items())
    json.dumps(row)


def test_ratio_resamples_the_same_edits_and_images_of_both_models(test_set):
    first, second = (ErrorDrawdownEvaluator(model, test_set) for model in (tiny_resnet(), tiny_extra()))
    assert not torch.equal(first.before, second.before)
    of_first, of_second = some_records(first), some_records(second)[::-1]
    means = [each.summarize("", records)["drawdown"] for each, records in ((first, of_first), (second, of_second))]
    samples = [each.resampled(records)["drawdown"] for each, records in ((first, of_first), (second, of_second))]
    above, below = resampled_by_hand(first, of_first), resampled_by_hand(second, of_second)
    ratios = [one / other for one, other in zip(above, below, strict=True) if other > 0]
    expected = [means[0] / means[1], *np.percentile(ratios, [2.5, 97.5])]
    assert ratio_of(means[0], samples[0], means[1], samples[1]) == pytest.approx(expected)
