from __future__ import annotations

import pytest
import torch

from editable_hf.experiments.edit_space import drawdown_by_class, own_class_ratio


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


def test_share_of_the_own_class():
    drawdowns = torch.tensor([[0.6, 0.1, torch.nan], [0.1, 0.6, torch.nan], [0.3, 0.1, torch.nan]])
    assert own_class_ratio(drawdowns) == pytest.approx(0.6 / 0.15)
