from __future__ import annotations

import pytest
import torch
from dknn_checks import NUM_QUERIES
from tiny_images import image_rows
from torch import nn
from transformers.utils import ModelOutput


class Linear(nn.Module):
    """A softmax-linear classifier of images in float64, with what the package reads off an image classifier."""

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, num_pixels, num_classes):
        super().__init__()
        self.linear = nn.Linear(num_pixels, num_classes, dtype=self.dtype)

    def forward(self, pixel_values):
        return ModelOutput(logits=self.linear(pixel_values.flatten(1)))


@pytest.fixture
def linear():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Linear(12, 4)


@pytest.fixture(scope="session")
def rows():
    """40 training images."""
    return image_rows(40, seed=5)


@pytest.fixture(scope="module")
def references():
    """Noisy enough that neighbors disagree."""
    return image_rows(60, seed=5, noise=2.0)


@pytest.fixture(scope="module")
def queries():
    return image_rows(NUM_QUERIES, seed=1, noise=2.0)
