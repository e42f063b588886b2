"""Which classes an edit of an image of each class hurts (section 4.2, Figure 2, left)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def drawdown_by_class(
    predictions: Tensor, before: Tensor, labels: Tensor, edited_classes: Tensor, num_classes: int
) -> Tensor:
    """Mean absolute difference of each class's error rate, by the class of the image that was edited.

    Args:
        predictions: Classes predicted for the test set after each edit, `(num_edits, num_images)`.
        before: Those of the unedited model, `(num_images,)`.
        labels: The right ones, `(num_images,)`.
        edited_classes: Class of each edit's image, `(num_edits,)`.
        num_classes: Number of classes.

    Returns:
        `(num_classes, num_classes)`, fractions, float64: row i, column j is the drawdown on test images of class j
        when an image of class i is edited. NaN in the row of a class without an edit, and in the column of one without
        a test image.
    """
    of_class = F.one_hot(labels, num_classes).double()  # (num_images, num_classes)
    sizes = of_class.sum(0)
    error_rates = (predictions != labels).double() @ of_class / sizes
    drawdowns = (error_rates - (before != labels).double() @ of_class / sizes).abs()  # (num_edits, num_classes)
    edits = F.one_hot(edited_classes, num_classes).double()  # (num_edits, num_classes)
    return edits.T @ drawdowns / edits.sum(0).unsqueeze(1)


def own_class_ratio(drawdowns: Tensor) -> float:
    """Mean drawdown on the edited image's own class over the mean drawdown on the other classes.

    The paper finds that "edits of baseline model cause most drawdown on samples that belong to the same class as the
    edited input": a number well above 1.

    Args:
        drawdowns: Of [`drawdown_by_class`].
    """
    own = torch.eye(len(drawdowns), dtype=torch.bool)
    return (drawdowns[own].nanmean() / drawdowns[~own].nanmean()).item()
