from __future__ import annotations

import copy
import statistics

import pytest
import reference
import torch
from tiny_images import NUM_CLASSES, Augmented, changed_names, image_rows, snapshot, tiny_extra, tiny_resnet

from editable_hf import rmsprop
from editable_hf.core import EditStack, select_parameters
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation import sequences
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.evaluation.sequences import evaluate_sequences, summarize_sequences
from editable_hf.experiments.report import SEQUENCE_COLUMNS, format_table

STEPS, NUM_IMAGES = 3, 17
CASES = {"chain3": (tiny_resnet, 3e-4), "all": (tiny_resnet, 1e-4), "extra": (tiny_extra, 3e-3)}


@pytest.fixture(scope="module")
def test_set():
    return image_rows(NUM_IMAGES, seed=1)


@pytest.fixture
def requests(test_set):
    return make_image_requests([row["labels"] for row in test_set], NUM_CLASSES, 9, seed=2).to_list()


def error_rate(model, rows):
    wrong = [int(model(row["pixel_values"].unsqueeze(0)).logits.argmax()) != row["labels"] for row in rows]
    return sum(wrong) / len(rows)


def brute_force(model, rows, requests, layers, alpha):
    """One run on a copy that is really changed, edit after edit; the whole model over all images each time."""
    model = copy.deepcopy(model).eval()
    names = list(select_parameters(model, layers))
    rates, successes, retained = [error_rate(model, rows)], [], []
    for count, request in enumerate(requests, start=1):
        image = rows[request["image_index"]]["pixel_values"].unsqueeze(0)
        params, losses = reference.edit_copy(
            model,
            lambda copied, x=image, r=request: reference.class_constraint(copied(x).logits[0], r["target"]),
            names,
            lambda grads: reference.rmsprop(grads, alpha, 0.5),
            STEPS,
        )
        own = dict(model.named_parameters())
        for name, value in params.items():
            own[name].data = value.clone()
        rates.append(error_rate(model, rows))
        successes.append(losses[-1] <= 0)
        kept = [
            int(model(rows[each["image_index"]]["pixel_values"].unsqueeze(0)).logits.argmax()) == each["target"]
            for each in requests[:count]
        ]
        retained.append(sum(kept) / count)
    return rates, successes, retained


@pytest.mark.parametrize("layers", CASES)
@pytest.mark.parametrize("group_size", [1, 4])
def test_runs_are_those_of_brute_force(test_set, requests, layers, group_size, monkeypatch, tmp_path):
    build, alpha = CASES[layers]
    model = build()
    before = snapshot(model)
    evaluator = ErrorDrawdownEvaluator(model, test_set, layers=layers, batch_size=7, edits_together=2)
    evaluator.group_size = group_size
    taken, run = [], sequences._run
    monkeypatch.setattr(
        sequences, "_run", lambda evaluator, rows, *args: taken.append(rows) or run(evaluator, rows, *args)
    )
    options = {"num_edits": 6, "num_runs": 3, "max_steps": STEPS, "progress": None}
    runs = evaluate_sequences(evaluator, requests, rmsprop(alpha), seed=5, path=tmp_path / "runs.jsonl", **options)
    assert changed_names(model, before) == [] and len(runs) == 3
    for found, rows in zip(runs, taken, strict=True):
        assert len({row["id"] for row in rows}) == 6
        rates, successes, retained = brute_force(model, test_set, rows, layers, alpha)
        assert found == {"error_rates": rates, "successes": successes, "retained": retained}
    assert len({tuple(row["id"] for row in rows) for rows in taken}) == 3
    assert len({rate for found in runs for rate in found["error_rates"]}) > 2
    assert min(min(found["retained"]) for found in runs) < 1 and any(any(found["successes"]) for found in runs)
    # What a killed run left is not repeated, and a run depends on its own seed alone.
    first = (tmp_path / "runs.jsonl").read_text().splitlines()[0]
    (tmp_path / "killed.jsonl").write_text(f"{first}\n{first[:9]}")
    again = evaluate_sequences(evaluator, requests, rmsprop(alpha), seed=5, path=tmp_path / "killed.jsonl", **options)
    assert again == runs and len(taken) == 5 and taken[3:] == taken[1:3]


def test_what_is_retained_is_the_image_that_was_edited(test_set):
    # Of an augmented dataset each access gives another image.
    images = Augmented(test_set, noise=3.0)
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), test_set, images, layers="all")
    rows = [{"id": i, "image_index": i, "label": 0, "target": i % NUM_CLASSES} for i in range(6)]
    options = {"num_edits": 1, "num_runs": 6, "max_steps": 50, "progress": None}
    runs = evaluate_sequences(evaluator, rows, rmsprop(1e-4), **options)
    assert all(found["successes"] == [True] and found["retained"] == [1] for found in runs)


def test_summary():
    runs = [
        {"error_rates": [0.1, 0.2, 0.4], "successes": [True, False], "retained": [1.0, 0.5]},
        {"error_rates": [0.1, 0.3, 0.2], "successes": [True, True], "retained": [1.0, 1.0]},
    ]
    row = summarize_sequences("editable", runs)
    assert row["name"] == "editable" and (row["edits_in_a_row"], row["num_runs"]) == (2, 2)
    deviation = statistics.stdev([0.4, 0.2])
    assert [row[key] for key in ("before", "after", "deviation")] == pytest.approx([0.1, 0.3, deviation])
    assert (row["success_rate"], row["retained_at_the_end"]) == (0.75, 0.75)
    assert row["error_rates"] == [found["error_rates"] for found in runs]
    assert summarize_sequences("single", runs[:1])["deviation"] == 0
    titles, _, line = format_table([row], SEQUENCE_COLUMNS).splitlines()
    assert line.split()[1:] == ["10.00%", "30.00%", "14.14%", "75.0%", "75.0%", "2", "2"]
    assert "held at the end" in titles


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("failing", [0, 2])
def test_weights_come_back_when_an_edit_fails(test_set, requests, monkeypatch, training, failing):
    model = tiny_resnet().train(training)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    evaluator = ErrorDrawdownEvaluator(model, test_set, layers="all")
    calls, edit = [], sequences.edit

    def fails(*args):
        if len(calls) == failing:
            assert (changed_names(model, before) != []) == (failing > 0)
            raise RuntimeError("no more")
        calls.append(args)
        return edit(*args)

    monkeypatch.setattr(sequences, "edit", fails)
    with pytest.raises(RuntimeError, match="no more"):
        evaluate_sequences(evaluator, requests, rmsprop(1e-3), num_edits=5, num_runs=1, progress=None)
    assert changed_names(model, before) == [] and [module.training for module in model.modules()] == modes


def test_weights_come_back_when_applying_fails(test_set, requests, monkeypatch):
    model = tiny_resnet()
    before, apply, count = snapshot(model), EditStack.apply, []
    evaluator = ErrorDrawdownEvaluator(model, test_set)

    def fails(self, result):
        count.append(None)
        if len(count) == 3:  # half of it is in place by then
            names = list(result.params)
            result = result._replace(params={**result.params, names[-1]: torch.zeros(3, 3, 3)})
        apply(self, result)

    monkeypatch.setattr(EditStack, "apply", fails)
    with pytest.raises(RuntimeError, match="must match"):
        evaluate_sequences(evaluator, requests, rmsprop(1e-3), num_edits=5, num_runs=1, progress=None)
    assert len(count) == 3 and changed_names(model, before) == []


@pytest.mark.parametrize(
    ("options", "numbers"),
    [({"num_edits": 0}, "0 and 10"), ({"num_edits": 10}, "10 and 10"), ({"num_edits": 2, "num_runs": 0}, "2 and 0")],
)
def test_bad_numbers(test_set, requests, options, numbers):
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), test_set)
    message = rf"from 1 to the number of requests \(9\) and `num_runs` at least 1, got {numbers}"
    with pytest.raises(ValueError, match=message):
        evaluate_sequences(evaluator, requests, rmsprop(1e-3), progress=None, **options)
