"""Image classification data in one form, whatever it was stored as."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from editable_hf.data.image_sources import (
    CIFAR10_CLASSES,
    images_of_arrays,
    images_of_paths,
    is_cifar10_folder,
    list_image_folder,
    read_cifar10_folder,
    read_class_ids,
    read_digits,
    read_hub_images,
)

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"

# Per channel, of pixels in [0, 1].
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# SHA-256 of CIFAR-10's test set: its records (label, then pixels row by row) in sorted order. An error rate compares
# with the paper's only on this test set, so it is recognized by content and not by the name of a folder.
_CIFAR10_TEST_SHA256 = "0ae072db3437edb693feba85f2d9dec41036f6e2f6d6f2cbd900da3ee13568b6"

_DIGITS_TEST, _DIGITS_VALIDATION, _NUM_HELD_OUT = 400, 200, 5_000
_IMAGENET_SIZE = 224


@dataclass(frozen=True)
class ImageData:
    """A set of labeled images, ready to train and to score on.

    Attributes:
        splits: "train", "validation" and "test". Columns: `image` (RGB) and `label` (a `ClassLabel`).
        name: The data, e.g. "CIFAR-10, folder cifar-10-batches-py".
        test_name: The test set that is scored, with its number of images, for reports.
        mean: Per channel, of pixels in [0, 1]; to normalize with.
        std: Same.
        image_size: Height and width of the model's input, in pixels.
        horizontal_flips: Whether a mirrored image is still an example of its class.
        photos: Whether the images have sizes of their own, so that they must be scaled and cropped.
    """

    splits: DatasetDict
    name: str
    test_name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    horizontal_flips: bool = True
    photos: bool = False

    @property
    def class_names(self) -> list[str]:
        """By label; the names of the folders of photos."""
        return self.splits["train"].features["label"].names

    @property
    def class_ids(self) -> dict[str, int]:
        """Label by class name, in the form that [`load_natural_adversarial`] takes."""
        return {name: index for index, name in enumerate(self.class_names)}


def load_image_data(
    source: str,
    *,
    revision: str | None = None,
    image_column: str = "img",
    label_column: str = "label",
    class_ids: str | os.PathLike | Mapping[str, int] | None = None,
    image_size: int | None = None,
    num_validation: int | None = None,
    validation_from: str = "train",
    max_train_samples: int | None = None,
    max_validation_samples: int | None = None,
    max_test_samples: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Loads the data of the image experiments (sections 4.1 to 4.3).

    Args:
        source: "embedded", scikit-learn's digits (1,197 / 200 / 400 images); a folder with CIFAR-10
            (cifar-10-batches-py, or lossless sprites); a folder of photos, `train/CLASS/*.JPEG` with `validation` (or
            `val`) and `test` beside `train`, decoded at access; or the id of a dataset on the hub with images of 32x32
            pixels, "uoft-cs/cifar10". Without `test`, as ImageNet has it, `val` is the test set. What is no image by
            its ending is left out and counted. A broken file stops the run with its name when it is read, if the
            transform is attached with [`with_pixels`].
        revision: Branch, tag or commit on the hub.
        image_column, label_column: Names of the hub dataset's images and labels.
        class_ids: Of photos: class ids by folder name, or a tab-separated file of them, where a model expects its
            own numbering. By default folders are numbered in sorted order (with all of ImageNet: its ids 0 to 999).
        image_size: Of the model's input, in pixels: by default 16, 32 and 224. The digits alone are stored at it.
        num_validation: Images held out, the last ones of a shuffle by `seed`: by default 200, 5,000 and a twentieth,
            but at most 10,000. Not for a folder with validation images of its own.
        validation_from: Which images these are: "train", or "test" for published weights, which have seen all training
            images and make hardly any mistake there. What is held out of the test set is not scored.
        max_train_samples: Upper limit on training images. A random sample is taken, in the data's order.
        max_validation_samples, max_test_samples: Same; `test_name` says so.
        seed: Decides the held-out images and the samples, but never what the whole test set is.

    Returns:
        The data; the same arguments give the same images.

    Raises:
        FileNotFoundError: If a folder or file cannot be found, or a class has no images.
        ValueError: If a file is damaged, a class unknown or an option does not fit `source`.
        ImportError: If scikit-learn is missing for "embedded".
    """
    if validation_from not in ("train", "test"):
        raise ValueError(f"`validation_from` must be 'train' or 'test', got {validation_from!r}.")
    data, held_out = _load(source, revision, (image_column, label_column), class_ids, image_size)
    if class_ids is not None and not data.photos:
        raise ValueError(f"`class_ids` are for a folder of photos, but {source!r} numbers its own classes.")
    if num_validation is not None and "validation" in data.splits:
        raise ValueError(
            f"The {data.name} has validation images of its own, but `num_validation` asks for {num_validation} more; "
            "leave it out, or remove the folder."
        )
    limits = {"train": max_train_samples, "validation": max_validation_samples, "test": max_test_samples}
    return _divide(data, held_out if num_validation is None else num_validation, validation_from, limits, seed)


def load_natural_adversarial(path: str | os.PathLike, class_ids: str | os.PathLike | Mapping[str, int]) -> Dataset:
    """Natural adversarial examples (section 4.3.1): 7,500 images of 200 of ImageNet's classes.

    Args:
        path: Folder with a folder for each class, named by its WordNet id, e.g. `imagenet-a`.
        class_ids: The model's class ids by folder name, e.g. `class_ids` of the ImageNet data loaded from a folder,
            or a tab-separated file of them.

    Returns:
        A dataset with columns `image` and `label`, the model's class id.

    Raises:
        FileNotFoundError: If the folder cannot be found or a class has no images.
        ValueError: If a class has no id.
    """
    images = list_image_folder(Path(path).expanduser().absolute())
    ids = _class_ids(class_ids)
    _check_known(images, ids, path)
    return images_of_paths(images, ids)


def _load(
    source: str, revision: str | None, columns: tuple[str, str], class_ids, size: int | None
) -> tuple[ImageData, int]:
    """The data with all of its images, and how many of these are to be held out."""
    folder = Path(source).expanduser()
    if source == EMBEDDED:
        return _load_digits(size or 16), _DIGITS_VALIDATION
    if not folder.is_dir():
        return _load_hub(source, revision, *columns, size or 32), _NUM_HELD_OUT
    if is_cifar10_folder(folder):
        return _load_cifar10(folder, size or 32), _NUM_HELD_OUT
    data = _load_folder(folder.absolute(), class_ids, size or _IMAGENET_SIZE)
    return data, max(1, min(10_000, len(data.splits["train"]) // 20))


def _load_digits(image_size: int) -> ImageData:
    images = read_digits(image_size)
    # One test set for all seeds, so that runs with different seeds compare.
    order = np.random.default_rng(0).permutation(len(images))
    train, test = images.select(sorted(order[_DIGITS_TEST:])), images.select(sorted(order[:_DIGITS_TEST]))
    pixels = np.stack([np.asarray(image) for image in train["image"]]) / 255
    mean, std = (tuple(moment(axis=(0, 1, 2)).round(4).tolist()) for moment in (pixels.mean, pixels.std))
    splits = DatasetDict({"train": train, "test": test})
    return ImageData(
        splits, "scikit-learn's digits", "test part of scikit-learn's digits", mean, std, image_size, False
    )


def _load_hub(dataset_id: str, revision: str | None, image_column: str, label_column: str, size: int) -> ImageData:
    splits, name = read_hub_images(dataset_id, revision, image_column, label_column), f"hub dataset {dataset_id}"
    return ImageData(splits, name, f"test of the {name}", CIFAR10_MEAN, CIFAR10_STD, size)


def _load_cifar10(folder: Path, image_size: int) -> ImageData:
    arrays = read_cifar10_folder(folder)
    splits = DatasetDict({part: images_of_arrays(*pair, CIFAR10_CLASSES) for part, pair in arrays.items()})
    name, test_name = f"folder {folder.resolve().name}", f"test of the folder {folder.resolve().name}"
    if _sha256(*arrays["test"]) == _CIFAR10_TEST_SHA256:
        name, test_name = f"CIFAR-10, {name}", "CIFAR-10 test set"
    return ImageData(splits, name, test_name, CIFAR10_MEAN, CIFAR10_STD, image_size)


def _load_folder(folder: Path, class_ids, image_size: int) -> ImageData:
    places = _split_folders(folder)
    images = {part: list_image_folder(place) for part, place in places.items()}
    for part in images.keys() - {"train"}:
        extra = sorted(images[part].keys() - images["train"].keys())
        if extra:
            raise ValueError(
                f"Expected every class of {places[part]} in {places['train']}, but {len(extra)} have no folder there, "
                f"e.g. {extra[0]}; complete the training images or remove the class."
            )
    missing = sorted(images["train"].keys() - images["test"].keys())
    if missing:
        logger.warning("%d classes of %s have no test images, e.g. %s.", len(missing), folder, missing[0])
    ids = {name: index for index, name in enumerate(images["train"])} if class_ids is None else _class_ids(class_ids)
    _check_known(images["train"], ids, folder / "train")
    splits = DatasetDict({part: images_of_paths(files, ids) for part, files in images.items()})
    origin = f"folder {folder.resolve().name}"
    test_name = f"{places['test'].name} of the {origin}"
    return ImageData(splits, origin, test_name, IMAGENET_MEAN, IMAGENET_STD, image_size, photos=True)


def _split_folders(folder: Path) -> dict[str, Path]:
    """The folders of "train", "test" and, where the test set is another one, "validation"."""
    names = [name for name in ("validation", "val") if (folder / name).is_dir()]
    if len(names) > 1:
        raise ValueError(
            f"Expected one folder of validation images in {folder}, but it has `validation` and `val`; remove one."
        )
    validation = folder / (names[0] if names else "val")
    if not (folder / "test").is_dir():
        return {"train": folder / "train", "test": validation}
    places = {"train": folder / "train", "test": folder / "test"}
    return places | ({"validation": validation} if names else {})


def _class_ids(class_ids: str | os.PathLike | Mapping[str, int]) -> Mapping[str, int]:
    return class_ids if isinstance(class_ids, Mapping) else read_class_ids(Path(class_ids).expanduser())


def _check_known(classes: Mapping[str, Sequence[str]], class_ids: Mapping[str, int], folder) -> None:
    unknown = [name for name in classes if name not in class_ids]
    if unknown:
        raise ValueError(
            f"Expected a class id for every folder of {folder}, but {len(unknown)} of {len(classes)} have none, e.g. "
            f"{unknown[0]}; add it to `class_ids`, which has {len(class_ids)} names, or remove the folder."
        )


def _hold_out(rows: np.ndarray, part: str, num_validation: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A shuffle of the rows of a split: those that stay there, and those that become validation images."""
    if not 1 <= num_validation < len(rows):
        kind = {"train": "training"}.get(part, part)
        raise ValueError(
            f"Expected to hold out between 1 and {len(rows) - 1} of {len(rows)} {kind} images, but `num_validation` "
            f"is {num_validation}; lower it or take more images."
        )
    order = np.random.default_rng(seed).permutation(rows)
    first = len(rows) - num_validation
    return order[:first], order[first:]


def _divide(
    data: ImageData, num_validation: int, validation_from: str, limits: Mapping[str, int | None], seed: int
) -> ImageData:
    """Holds out validation images, cuts the splits down to their limits and counts the test images."""
    parts = {part: (images, np.arange(len(images))) for part, images in data.splits.items()}
    if "validation" in parts and validation_from != "train":
        raise ValueError(
            f"The {data.name} has validation images of its own, but `validation_from` is {validation_from!r}; leave "
            "it out, or remove the folder."
        )
    if "validation" not in parts:
        pool, rows = parts[validation_from]
        kept, held_out = _hold_out(rows, validation_from, num_validation, seed)
        parts |= {validation_from: (pool, kept), "validation": (pool, held_out)}
    test, splits = data.splits["test"], DatasetDict()
    for part in ("train", "validation", "test"):
        images, rows = parts[part]
        limit = limits[part]
        if limit is not None and limit < 1:
            raise ValueError(f"Expected at least one image in a split, but the limit for {part!r} is {limit}.")
        if limit is not None and limit < len(rows):
            rows = np.random.default_rng(seed).permutation(rows)[:limit]
        splits[part] = images.select(np.sort(rows))
    count = f"{len(test):,} images"
    if len(splits["test"]) < len(test):
        count = f"{len(splits['test']):,} sampled of {count}"
    test_name = f"{data.test_name} ({count})"
    return replace(data, splits=splits, test_name=test_name)


def _sha256(pixels: np.ndarray, labels: np.ndarray) -> str:
    records = np.concatenate([labels[:, None], pixels.reshape(len(pixels), -1)], axis=1)
    return hashlib.sha256(b"".join(sorted(record.tobytes() for record in records))).hexdigest()
