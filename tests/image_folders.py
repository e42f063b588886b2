"""Small image folders in ImageNet's layout, cut out of real ImageNet photographs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

SAMPLE = Path(__file__, "../../../shared/data/imagenet_sample_100").resolve()
NUM_CLASSES = 6


def make_image_folders(folder: Path) -> Path:
    """`imagenet` with 10 training and 4 test images of each of six classes, and `adversarial` with 3 more of four.

    Each image is a part of its class's one photograph, scaled down.
    """
    if not (SAMPLE / "img").is_dir():
        pytest.skip(f"needs photographs, which are not in {SAMPLE}")
    photographs = sorted((SAMPLE / "img").glob("*.jpg"))[:NUM_CLASSES]
    for number, path in enumerate(photographs):
        with Image.open(path) as image:
            for part, count, first in (("imagenet/train", 10, 0), ("imagenet/val", 4, 10), ("adversarial", 3, 14)):
                if part == "adversarial" and number >= 4:
                    continue
                target = folder / part / path.stem
                target.mkdir(parents=True)
                for index in range(first, first + count):
                    left, top = 7 * (index % 5), 7 * (index // 5)
                    cut = image.crop((left, top, left + 200, top + 200)).resize((40, 36))
                    cut.save(target / f"{index}.JPEG")
    return folder
