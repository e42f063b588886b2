"""Images to model inputs: augmentation for training, resizing and cropping for evaluation."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

# Of a random resized crop: part of the image's area, and width over height.
CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10
# What Pillow raises for a damaged file, by format and kind of damage.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

_RGB = datasets.Image(mode="RGB")


def with_pixels(dataset: datasets.Dataset, transform: TrainTransform | EvalTransform) -> datasets.Dataset:
    """The dataset with `transform` applied at each access, and with errors that name the file of a broken image.

    Same as `dataset.with_transform(transform)`, but the transform decodes the images itself. With a `Trainer`, set
    `remove_unused_columns=False`, because `image` is not an argument of any model.
    """
    return dataset.cast_column("image", datasets.Image(decode=False)).with_transform(transform)


def decode_image(image: Image.Image | Mapping[str, Any]) -> Image.Image:
    """An RGB image of one that is decoded already, or of its `bytes` and `path` as `datasets` stores them.

    Raises:
        ValueError: If the data is not a whole image; names the file.
    """
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    try:
        return _RGB.decode_example(dict(image))
    except _DECODING_ERRORS as error:
        raise ValueError(
            f"Expected an image in {image['path'] or 'the bytes of a row'}, but it cannot be decoded ({error}); "
            "fetch the file again or remove it."
        ) from error


@dataclass(frozen=True)
class _Transform(ABC):
    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, batch: Mapping[str, Sequence]) -> dict[str, Tensor]:
        """Rows of a dataset to `pixel_values` `(batch, 3, size, size)`, float32, and `labels` `(batch,)`."""
        return {"pixel_values": self.pixels(batch["image"]), "labels": torch.tensor(batch["label"])}

    @abstractmethod
    def pixels(self, images: Sequence) -> Tensor:
        """Normalized `(batch, 3, size, size)` of images, decoded or not."""


@dataclass(frozen=True)
class TrainTransform(_Transform):
    """Random crops and horizontal flips (sections 4.1 and 4.3); draws from torch's global generator.

    Args:
        size: Height and width of the result, in pixels.
        mean: Per channel, of pixels in [0, 1].
        std: Same.
        kind: "crop" pads by `size // 8` black pixels on each side and crops at random, for images of that size
            (CIFAR-10); "resized_crop" scales a random part of 8% to 100% of the area to `size`, bilinear (ImageNet).
        flip: Whether half of the images are mirrored, left to right.

    Raises:
        ValueError: If `kind` is neither.
    """

    kind: str = "crop"
    flip: bool = True

    def __post_init__(self):
        if self.kind not in ("crop", "resized_crop"):
            raise ValueError(
                f"Expected `kind` to be 'crop' or 'resized_crop', but got {self.kind!r}; 'crop' is for images that "
                "have the size of the model's input already."
            )

    def pixels(self, images: Sequence) -> Tensor:
        images = [decode_image(image) for image in images]
        arrays = self._crops(images) if self.kind == "crop" else _stack(self._resized_crop(image) for image in images)
        if self.flip:
            mirrored = torch.rand(len(arrays)).numpy() < 0.5
            arrays[mirrored] = arrays[mirrored, :, ::-1]
        return _normalize(arrays, self.mean, self.std)

    def _crops(self, images: Sequence[Image.Image]) -> np.ndarray:
        size, pad = self.size, self.size // 8
        _check_size(images, size, "use `kind='resized_crop'`")
        padded = np.zeros((len(images), size + 2 * pad, size + 2 * pad, 3), np.uint8)
        padded[:, pad : pad + size, pad : pad + size] = _stack(images)
        offsets = torch.randint(2 * pad + 1, (len(images), 2)).tolist()
        crops = np.empty((len(images), size, size, 3), np.uint8)
        for crop, image, (top, left) in zip(crops, padded, offsets, strict=True):
            crop[:] = image[top : top + size, left : left + size]
        return crops

    def _resized_crop(self, image: Image.Image) -> Image.Image:
        left, top, width, height = random_crop_box(*image.size)
        # Cropped before it is resized: with `resize(box=...)` the filter would see pixels outside the box.
        crop = image.crop((left, top, left + width, top + height))
        return crop.resize((self.size, self.size), Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class EvalTransform(_Transform):
    """Normalizes; with `resize`, first scales the shorter side and crops the center. Deterministic.

    Args:
        size: Height and width of the result, in pixels.
        mean: Per channel, of pixels in [0, 1].
        std: Same.
        resize: Length of the shorter side before the crop, in pixels (256 for ImageNet); `None` for images that have
            the size already.

    Raises:
        ValueError: If `resize` is below `size`.
    """

    resize: int | None = None

    def __post_init__(self):
        if self.resize is not None and self.resize < self.size:
            raise ValueError(
                f"Expected `resize` to be at least `size`, but got {self.resize} and {self.size}; a crop cannot be "
                "larger than the image."
            )

    def pixels(self, images: Sequence) -> Tensor:
        images = [decode_image(image) for image in images]
        if self.resize is None:
            _check_size(images, self.size, "set `resize`")
        else:
            images = [_center_crop(_resize_shorter_side(image, self.resize), self.size) for image in images]
        return _normalize(_stack(images), self.mean, self.std)


def random_crop_box(width: int, height: int) -> tuple[int, int, int, int]:
    """A random part of an image: `(left, top, width, height)` in pixels, from torch's global generator.

    The area is uniform over `CROP_SCALE` and the ratio of width to height log-uniform over `CROP_RATIO`, both
    conditioned on the box fitting in. Where ten draws give none that fits: the largest central box within
    `CROP_RATIO`.
    """
    log_low, log_high = (math.log(ratio) for ratio in CROP_RATIO)
    for area_draw, ratio_draw, left_draw, top_draw in torch.rand(_CROP_ATTEMPTS, 4, dtype=torch.float64).tolist():
        area = width * height * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * area_draw)
        ratio = math.exp(log_low + (log_high - log_low) * ratio_draw)
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = int(left_draw * (width - crop_width + 1)), int(top_draw * (height - crop_height + 1))
            return left, top, crop_width, crop_height
    crop_width = min(width, max(1, round(height * CROP_RATIO[1])))
    crop_height = min(height, max(1, round(width / CROP_RATIO[0])))
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def _resize_shorter_side(image: Image.Image, length: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    new_size = (int(length * width / shorter), int(length * height / shorter))
    return image if new_size == image.size else image.resize(new_size, Image.Resampling.BILINEAR)


def _center_crop(image: Image.Image, size: int) -> Image.Image:
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _check_size(images: Sequence[Image.Image], size: int, remedy: str) -> None:
    for image in images:
        if image.size != (size, size):
            raise ValueError(
                f"Expected images of {size}x{size} pixels, but got one of {image.width}x{image.height}; {remedy} for "
                "images of other sizes."
            )


def _stack(images) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])  # (batch, height, width, 3)


def _normalize(arrays: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(arrays.transpose(0, 3, 1, 2))).float().div_(255)
    return pixels.sub_(torch.tensor(mean).view(3, 1, 1)).div_(torch.tensor(std).view(3, 1, 1))
