"""What the tests of image data sets compare: how many images a split has, their pixels, and pixels with labels."""

from __future__ import annotations

import numpy as np
from datasets import Dataset

from editable_hf.data.images import ImageData


def sizes(data: ImageData) -> dict[str, int]:
    return {part: len(split) for part, split in data.splits.items()}


def pixels_of(split: Dataset) -> np.ndarray:
    """`(num_images, height, width, 3)`."""
    return np.stack([np.asarray(image) for image in split["image"]])


def sorted_rows(*splits: Dataset) -> list[bytes]:
    """Pixels and label of every image of some splits, whatever their order."""
    return sorted(row["image"].tobytes() + bytes([row["label"]]) for split in splits for row in split)
