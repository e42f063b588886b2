from __future__ import annotations

import copy
import json

import pytest
import reference
import torch
from tiny_images import (
    NUM_CLASSES,
    changed_names,
    image_rows,
    snapshot,
    tiny_extra,
    tiny_huggingface_resnet,
    tiny_resnet,
)

from editable_hf import ClassConstraint, edit, edited, rmsprop
from editable_hf.core import rprop, select_parameters
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation import error_evaluator
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.evaluation.records import read_records

STEPS, NUM_IMAGES = 4, 23


# how to build the model, what an edit may move (the stem comes first in it), alpha
CASES = {
    "chain1": (tiny_resnet, "chain1", 1e-3),
    "chain3": (tiny_resnet, "chain3", 2e-4),
    "stem": (tiny_resnet, "stem", 5e-3),
    "one bias": (tiny_resnet, "layer2.0.bn1.bias", 3e-2),
    "head": (tiny_resnet, ["head", "chain2"], 5e-4),
    "all": (tiny_resnet, "all", 1e-4),
    "extra": (tiny_extra, "extra", 2e-3),
    "chain2 below extra": (tiny_extra, "chain2", 5e-4),
    "hugging face": (tiny_huggingface_resnet, "chain3", 2e-2),
    "shortcut": (tiny_huggingface_resnet, "stages.2.layers.0.shortcut", 1e-1),
}


@pytest.fixture(scope="module")
def test_set():
    return image_rows(NUM_IMAGES, seed=1)


@pytest.fixture
def requests(test_set):
    labels = [row["labels"] for row in test_set]
    return make_image_requests(labels, NUM_CLASSES, 8, seed=2)


def classify(model, rows):
    return [int(model(row["pixel_values"].unsqueeze(0)).logits.argmax()) for row in rows]


def brute_force(model, rows, request, names, alpha):
    """The edit by the paper's formulas on a copy of the model, and all predictions of that copy, one by one."""
    image = rows[request["image_index"]]["pixel_values"].unsqueeze(0)
    params, losses = reference.edit_copy(
        model,
        lambda copied: reference.class_constraint(copied(image).logits[0], request["target"]),
        names,
        lambda grads: reference.rmsprop(grads, alpha, 0.5),
        STEPS,
    )
    changed = copy.deepcopy(model).eval()
    with edited(changed, params):
        return classify(changed, rows), losses, int(changed(image).logits.argmax())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("together", "gigabytes", "batch_size"), [(1, 4.0, 10), (3, 4.0, 6), (8, 1e-9, 50)])
def test_records_are_those_of_brute_force(test_set, requests, name, together, gigabytes, batch_size):
    build, layers, alpha = CASES[name]
    model = build()
    evaluator = ErrorDrawdownEvaluator(
        model,
        test_set,
        layers=layers,
        batch_size=batch_size,
        gigabytes=gigabytes,
        edits_together=together,
    )
    assert (evaluator.group_size == 1) == (gigabytes < 1)
    records = evaluator.evaluate(requests, rmsprop(alpha), max_steps=STEPS, progress=None)

    labels = [row["labels"] for row in test_set]
    before = classify(model, test_set)
    assert evaluator.before.tolist() == before
    wrong = sum(predicted != label for predicted, label in zip(before, labels, strict=True))
    assert (evaluator.error_rate, evaluator.num_images) == (wrong / NUM_IMAGES, NUM_IMAGES)
    assert len(records) == len(requests)
    for request, record in zip(requests, records, strict=True):
        names = list(select_parameters(model, layers))
        after, losses, predicted = brute_force(model, test_set, request, names, alpha)
        assert {key: record[key] for key in ("id", "image_index", "label", "target")} == request
        assert record["label"] == labels[record["image_index"]]
        wrong = sum(new != label for new, label in zip(after, labels, strict=True))
        assert record["error_rate"] == wrong / NUM_IMAGES
        changed = [[i, after[i]] for i in range(NUM_IMAGES) if after[i] != before[i]]
        assert (record["changed"], record["num_changed"]) == (changed, len(changed))
        assert (record["before"], record["after"]) == (before[request["image_index"]], predicted)
        assert (record["num_steps"], record["success"]) == (len(losses) - 1, losses[-1] <= 0)
        assert (record["loss_before"], record["loss_after"]) == pytest.approx((losses[0], losses[-1]), abs=1e-8)
        assert record["success"] == (record["after"] == record["target"])
    assert {record["num_steps"] == 0 for record in records} == {True, False}
    assert sum(record["num_changed"] for record in records) > 0
    assert any(record["error_rate"] != evaluator.error_rate for record in records)


@pytest.mark.parametrize("name", CASES)
def test_edits_together_are_those_one_by_one(test_set, requests, name):
    """Not the classes alone: the logits, to rounding."""
    build, layers, alpha = CASES[name]
    model = build()
    evaluator = ErrorDrawdownEvaluator(model, test_set, layers=layers)
    rows = [{"pixel_values": test_set[r["image_index"]]["pixel_values"].unsqueeze(0)} for r in requests]
    edits = [
        edit(model, ClassConstraint(row, request["target"]), rmsprop(alpha), layers, STEPS).params
        for row, request in zip(rows, requests, strict=True)
    ]
    images = torch.stack([row["pixel_values"] for row in test_set])
    watched = select_parameters(model, layers).values()
    with torch.no_grad(), error_evaluator.record(model, watched) as recording:
        model(images)
    calls, replay = [], recording.replay
    recording.replay = lambda params: calls.append(params) or replay(params)
    with torch.no_grad():
        logits = error_evaluator._replay_all(recording, error_evaluator._stack(edits, evaluator.layers))
        # Hugging Face's ResNet adds to the layer's output, which all edits of a shortcut share: vmap refuses.
        assert len(calls) == (1 + len(edits) if name == "shortcut" else 1)
        for params, ours in zip(edits, logits, strict=True):
            with edited(model, params):
                torch.testing.assert_close(ours, model(images).logits, rtol=0, atol=1e-11)


def test_other_images_are_edited(test_set):
    model, others = tiny_resnet(), image_rows(4, seed=9)
    evaluator = ErrorDrawdownEvaluator(model, test_set, others)
    request = {"id": 7, "image_index": 3, "label": 3}
    (before,) = classify(model, others[3:])
    request["target"] = (before + 1) % NUM_CLASSES
    (record,) = evaluator.evaluate([request], rmsprop(2e-4), max_steps=STEPS, progress=None)
    after, losses, predicted = brute_force(model, [*others, *test_set], request, evaluator.layers, 2e-4)
    assert (record["before"], record["after"], record["loss_before"]) == (before, predicted, pytest.approx(losses[0]))
    assert record["num_steps"] == len(losses) - 1 > 0
    assert record["changed"] == [[i, new] for i, new in enumerate(after[4:]) if new != evaluator.before[i]]


def test_edits_that_hold_already_change_nothing(test_set, monkeypatch):
    model = tiny_resnet()
    evaluator = ErrorDrawdownEvaluator(model, test_set)
    requests = [
        {"id": index, "image_index": index, "label": test_set[index]["labels"], "target": int(evaluator.before[index])}
        for index in range(3)
    ]
    monkeypatch.setattr(evaluator, "predict", None)  # nothing is there to be measured
    records = evaluator.evaluate(requests, rmsprop(1e-3), progress=None)
    for record in records:
        assert (record["num_steps"], record["success"], record["num_changed"], record["changed"]) == (0, True, 0, [])
        assert record["error_rate"] == evaluator.error_rate and record["before"] == record["after"] == record["target"]
    row = evaluator.summarize("held", records)
    assert (row["drawdown"], row["drawdown_moved"], row["already_satisfied"]) == (0, 0, 1)


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_it_was(test_set, requests, training):
    model = tiny_extra().train(training)
    model.backbone.layer2.train(not training)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    evaluator = ErrorDrawdownEvaluator(model, test_set, layers="all", edits_together=2)
    records = evaluator.evaluate(requests, rmsprop(1e-3), max_steps=2, progress=None)
    assert sum(record["num_changed"] for record in records) > 0
    assert changed_names(model, before) == [] and [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


# Records on disk


def without_time(records):
    return [{key: value for key, value in record.items() if key != "edit_seconds"} for record in records]


@pytest.mark.parametrize("group_size", [1, 3])
def test_interrupted_evaluation_continues(test_set, requests, tmp_path, group_size):
    evaluator, path = ErrorDrawdownEvaluator(tiny_resnet(), test_set), tmp_path / "edits.jsonl"
    evaluator.group_size = group_size
    options = {"max_steps": STEPS, "path": path, "progress": None}
    whole = evaluator.evaluate(requests, rmsprop(2e-4), **options)
    lines = path.read_bytes().splitlines(keepends=True)
    assert [json.loads(line) for line in lines] == whole and len(whole) == 8
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])  # killed while it was writing

    measured, measure = [], evaluator._measure
    evaluator._measure = lambda rows, *args: measured.append([row["id"] for row in rows]) or measure(rows, *args)
    again = evaluator.evaluate(requests, rmsprop(2e-4), **options)
    assert measured == ([[4], [5], [6], [7]] if group_size == 1 else [[4, 5, 6], [7]])
    assert again[:4] == whole[:4] and without_time(again) == without_time(whole) and read_records(path) == again
    assert evaluator.evaluate(requests, rmsprop(2e-4), **options) == again and len(measured) in (2, 4)


def test_killed_between_groups(test_set, requests, tmp_path):
    evaluator, path = ErrorDrawdownEvaluator(tiny_resnet(), test_set), tmp_path / "edits.jsonl"
    evaluator.group_size, measure, calls = 3, evaluator._measure, []

    def killed(*args):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*args)

    evaluator._measure = killed
    with pytest.raises(KeyboardInterrupt):
        evaluator.evaluate(requests, rmsprop(2e-4), max_steps=STEPS, path=path, progress=None)
    assert [record["id"] for record in read_records(path)] == list(range(6))


def test_records_of_other_requests(test_set, requests, tmp_path):
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), test_set)
    options = {"path": tmp_path / "edits.jsonl", "progress": None, "max_steps": 1}
    evaluator.evaluate(requests.select([0]), rmsprop(2e-4), **options)
    other = {**requests[0], "target": (requests[0]["target"] + 1) % NUM_CLASSES}
    with pytest.raises(
        ValueError, match=r"edits.jsonl holds the edit of \[0, .*\] where that of \[0, .* other requests"
    ):
        evaluator.evaluate([other], rmsprop(2e-4), **options)


# Tables


def test_edits_that_fail_are_measured_as_they_were_before_that(test_set, requests, breaking_editor, tmp_path):
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), test_set, layers="chain3")
    expected = without_time(evaluator.evaluate(requests, rprop(1e-6), max_steps=2, progress=None))
    path = tmp_path / "edits.jsonl"
    records = without_time(evaluator.evaluate(requests, breaking_editor, max_steps=5, progress=None, path=path))
    reasons = [record.pop("failure", None) for record in records]
    assert records == expected
    assert [reason is not None for reason in reasons] == [not record["success"] for record in records]
    assert any(reasons) and all(reason.endswith(" is not finite after step 3") for reason in reasons if reason)
    assert [record.get("failure") for record in read_records(path)] == reasons


def test_image_that_is_not_finite(test_set, requests):
    pixels = torch.full_like(test_set[0]["pixel_values"], torch.nan)
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), test_set, layers="chain3")
    evaluator.edit_images = [{**row, "pixel_values": pixels} for row in test_set]
    (record,) = evaluator.evaluate(requests.select([0]), rprop(1e-6), max_steps=5, progress=None)
    assert record["failure"] == "l_e is nan before the first step" and not record["success"]
    assert record["loss_before"] is None and record["loss_after"] is None  # JSON has no NaN
    assert record["num_steps"] == record["num_changed"] == 0 and record["error_rate"] == evaluator.error_rate
    row = evaluator.summarize("broken", [record])
    assert row["num_failures"] == 1 and row["drawdown"] == 0 and row["already_satisfied"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gigabytes": 0.0}, "`gigabytes` must be above 0 and `edits_together` at least 1, got 0.0 and 1"),
        ({"edits_together": 0}, "`gigabytes` must be above 0 and `edits_together` at least 1, got 4.0 and 0"),
        ({"layers": "chain9"}, "has no 'chain9'; its chains are chain1 to chain3"),
    ],
)
def test_bad_options(test_set, options, message):
    with pytest.raises(ValueError, match=message):
        ErrorDrawdownEvaluator(tiny_resnet(), test_set, **options)


def test_groups_follow_the_memory(test_set):
    model = tiny_resnet()
    size = sum(parameter.nbytes for parameter in select_parameters(model, "chain2").values())
    evaluator = ErrorDrawdownEvaluator(model, test_set, layers="chain2", gigabytes=2 * 7.5 * size / 1e9)
    assert evaluator.group_size == 7


def test_random_state_of_the_caller_is_kept(test_set, requests):
    state = torch.get_rng_state()
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), test_set, layers="chain3")
    evaluator.evaluate(requests, rmsprop(1e-3), max_steps=1, progress=None)
    assert torch.equal(torch.get_rng_state(), state)
