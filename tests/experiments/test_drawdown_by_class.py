from __future__ import annotations

import pytest
import torch
from tiny_images import NUM_CLASSES, image_rows, tiny_resnet

from editable_hf import ClassConstraint, edit, rmsprop
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_edits import ErrorDrawdownEvaluator
from editable_hf.experiments.drawdown_by_class import drawdown_by_class, own_class_ratio, predictions_of


def brute_force(predictions, before, labels, edited, num_classes):
    result = torch.full((num_classes, num_classes), torch.nan, dtype=torch.float64)
    for row in range(num_classes):
        for column in range(num_classes):
            images = [index for index, label in enumerate(labels.tolist()) if label == column]
            differences = [
                abs(sum(int(after[index] != column) - int(before[index] != column) for index in images) / len(images))
                for after, own in zip(predictions, edited.tolist(), strict=True)
                if own == row and images
            ]
            if differences:
                result[row, column] = sum(differences) / len(differences)
    return result


def test_equals_a_loop_over_edits_and_images():
    generator = torch.Generator().manual_seed(0)
    labels, before = (torch.randint(4, (50,), generator=generator) for _ in range(2))
    predictions = torch.randint(4, (12, 50), generator=generator)
    edited = torch.randint(3, (12,), generator=generator)  # no edit of class 3
    labels[labels == 2] = 1  # no test image of class 2
    result = drawdown_by_class(predictions, before, labels, edited, 4)
    expected = brute_force(predictions, before, labels, edited, 4)
    assert torch.allclose(result, expected, atol=1e-12, equal_nan=True)
    assert result[3].isnan().all() and result[:, 2].isnan().all() and not result[:3, :2].isnan().any()


def test_predictions_come_back_from_the_records():
    rows = image_rows(23, seed=1)
    evaluator = ErrorDrawdownEvaluator(tiny_resnet(), rows, layers="chain3")
    requests = make_image_requests([row["labels"] for row in rows], NUM_CLASSES, 5, seed=2)
    records = evaluator.evaluate(requests, rmsprop(2e-2), max_steps=4, progress=None)
    predictions = predictions_of(records, evaluator.before)
    constraints = [ClassConstraint(evaluator.request_inputs(each), each["target"]) for each in requests]
    edits = [edit(evaluator.model, each, rmsprop(2e-2), "chain3", 4).params for each in constraints]
    assert torch.equal(predictions, evaluator.predict(edits)[1:])
    assert not torch.equal(predictions[0], evaluator.before), "the test needs an edit that changes something"


def test_share_of_the_own_class():
    drawdowns = torch.tensor([[0.6, 0.1, torch.nan], [0.1, 0.6, torch.nan], [0.3, 0.1, torch.nan]])
    assert own_class_ratio(drawdowns) == pytest.approx(0.6 / 0.15)
