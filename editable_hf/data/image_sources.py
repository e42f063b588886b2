"""Reads labeled images: scikit-learn's digits, CIFAR-10 as it is published, folders with a folder for each class."""

from __future__ import annotations

import io
import logging
import os
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset
from PIL import Image

from editable_hf.data.text_lines import read_lines
from editable_hf.seams.numpy_seam import array_pickle_names
from editable_hf.versions import require_extra

logger = logging.getLogger(__name__)

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IMAGE_ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")

_CIFAR10_SIDE = 32
_CIFAR10_PIXELS = 3 * _CIFAR10_SIDE**2
_CIFAR10_LAYOUTS = (
    "data_batch_1 to data_batch_5 and test_batch (cifar-10-batches-py), or train_labels.npy and test_labels.npy with "
    "lossless sprites train_NN.webp and test_NN.webp"
)


def images_of_arrays(pixels: np.ndarray, labels: Sequence[int], class_names: Sequence[str]) -> Dataset:
    """A dataset with columns `image` and `label` of `(num_images, height, width, 3)`, uint8."""
    # Bitmaps are as lossless as PNG and several times faster to write and to read.
    encoded = [{"bytes": _bitmap(array), "path": None} for array in pixels]
    features = Features({"image": datasets.Image(mode="RGB"), "label": ClassLabel(names=list(class_names))})
    return Dataset.from_dict({"image": encoded, "label": [int(label) for label in labels]}, features=features)


@cache
def read_digits(image_size: int) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, scaled up to `image_size` and repeated as three channels.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    require_extra("sklearn", "vision")
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = [
        Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).resize(
            (image_size, image_size), Image.Resampling.BILINEAR
        )
        for image in digits.images
    ]
    pixels = np.stack([np.asarray(image) for image in grey])[..., None].repeat(3, axis=-1)
    return images_of_arrays(pixels, digits.target.tolist(), [str(name) for name in digits.target_names])


def read_cifar10_folder(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """CIFAR-10 from a folder: pixels `(num_images, 32, 32, 3)` and labels `(num_images,)`, both uint8.

    Args:
        folder: In one of two layouts, see the error; or the folder that an archive was unpacked in.

    Returns:
        "train" and "test".

    Raises:
        FileNotFoundError: If the folder has none of the layouts, or a file is missing.
        ValueError: If a file is damaged.
    """
    for place in _cifar10_places(folder):
        if (place / "test_batch").is_file():
            return _read_batches(place)
        if (place / "test_labels.npy").is_file():
            return {part: _read_sprites(place, part) for part in ("train", "test")}
    raise FileNotFoundError(
        f"Expected the folder {folder} to hold CIFAR-10 as {_CIFAR10_LAYOUTS}, but it has {_listing(folder)}; give "
        "the folder with these files, and unpack an archive first."
    )


def is_cifar10_folder(folder: Path) -> bool:
    """Whether [`read_cifar10_folder`] knows the layout of the folder."""
    marks = ("test_batch", "test_labels.npy")
    return any((place / mark).is_file() for place in _cifar10_places(folder) for mark in marks)


def _cifar10_places(folder: Path) -> tuple[Path, ...]:
    return folder, folder / "cifar-10-batches-py"


def read_hub_images(dataset_id: str, revision: str | None, image_column: str, label_column: str) -> DatasetDict:
    """Downloads (or takes from the cache) the splits "train" and "test" of a dataset, as `image` and `label`.

    Raises:
        FileNotFoundError: If the hub cannot be reached or does not know the dataset.
        ValueError: If a split or a column is missing, or the labels are no classes.
    """
    try:
        splits = load_dataset(dataset_id, revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"Expected {dataset_id!r} to be 'embedded', a folder, or a dataset on the hub or in its cache, but it "
            f"cannot be read ({error}); check the spelling and the network, or give the folder of your images, which "
            f"has `train` and `test` in it, or one with {_CIFAR10_LAYOUTS}."
        ) from error
    chosen = DatasetDict()
    for part in ("train", "test"):
        columns = splits[part].features if part in splits else {}
        if not isinstance(columns.get(label_column), ClassLabel) or image_column not in columns:
            raise ValueError(
                f"Expected the split {part!r} of {dataset_id!r} to have images in the column {image_column!r} and "
                f"class labels in {label_column!r}, but it has {dict(columns) or 'no such split'}; set `image_column` "
                "and `label_column`."
            )
        renamed = splits[part].select_columns([image_column, label_column])
        renamed = renamed.rename_columns(
            {old: new for old, new in ((image_column, "image"), (label_column, "label")) if old != new}
        )
        chosen[part] = renamed.cast_column("image", datasets.Image(mode="RGB"))
    return chosen


def list_image_folder(folder: Path) -> dict[str, list[str]]:
    """Paths of the images by class, for a folder with a folder for each class; both sorted by name.

    Warns with their number of the files that are left out, because their endings are not an image's.

    Raises:
        FileNotFoundError: If the folder is missing, has no class folder, or one of them has no image.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"Expected a folder {folder} with a folder for each class, but it does not exist; check the path."
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise FileNotFoundError(
            f"Expected {folder} to hold a folder for each class, but it has {_listing(folder)}; sort the images into "
            "folders named after their classes."
        )
    images, others = {}, Counter()
    for name in classes:
        files = _files_below(folder / name)
        images[name] = [path for path in files if path.lower().endswith(IMAGE_ENDINGS)]
        others.update(Path(path).suffix.lower() for path in files if not path.lower().endswith(IMAGE_ENDINGS))
    if others:
        counts = ", ".join(f"{ending} ({count:,})" for ending, count in sorted(others.items()))
        endings = ", ".join(IMAGE_ENDINGS)
        logger.warning("Files of %s that do not end in %s are left out: %s.", folder, endings, counts)
    empty = [name for name, paths in images.items() if not paths]
    if empty:
        raise FileNotFoundError(
            f"Expected images ({', '.join(IMAGE_ENDINGS)}) in each class folder, but {len(empty)} of "
            f"{len(classes)} have none, e.g. {folder / empty[0]}; fill or remove them."
        )
    return images


def images_of_paths(images: Mapping[str, Sequence[str]], class_ids: Mapping[str, int]) -> Dataset:
    """A dataset of files that are decoded at access: column `image` holds paths, `label` the id of the class."""
    paths = [path for name in images for path in images[name]]
    labels = [class_ids[name] for name, files in images.items() for _ in files]
    features = Features({"image": Value("string"), "label": ClassLabel(names=class_names(class_ids))})
    dataset = Dataset.from_dict({"image": paths, "label": labels}, features=features)
    return dataset.cast_column("image", datasets.Image(mode="RGB"))


def class_names(class_ids: Mapping[str, int]) -> list[str]:
    """Class names in the order of their ids; ids without a name get one."""
    names = {index: name for name, index in class_ids.items()}
    return [names.get(index, f"class {index}") for index in range(max(names) + 1)]


def read_class_ids(path: Path) -> dict[str, int]:
    """Class ids from a tab-separated file: lines of folder name and id.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line has no id, or a name or an id comes twice; names the line.
    """
    class_ids: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        name, _, text = line.partition("\t")
        if not text.strip().isdecimal() or name in class_ids or int(text) in class_ids.values():
            raise ValueError(
                f"Expected a folder name and a class id of its own, separated by a tab, but line {number} of {path} "
                f"is {line!r}; each name and each id may occur once."
            )
        class_ids[name] = int(text)
    if not class_ids:
        raise ValueError(f"Expected lines of folder name, tab, class id in {path}, but it is empty; fill it.")
    return class_ids


def _bitmap(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="BMP")
    return buffer.getvalue()


def _files_below(folder: Path) -> list[str]:
    return sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
        if not name.startswith(".")
    )


def _read_batches(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    parts = {}
    for part, stems in (("train", [f"data_batch_{n}" for n in range(1, 6)]), ("test", ["test_batch"])):
        batches = []
        for stem in stems:
            path = folder / stem
            if not path.is_file():
                raise FileNotFoundError(f"Expected CIFAR-10's {path}, but there is no such file; unpack all batches.")
            batches.append(_check_batch(*_read_pickled_batch(path), path))
        planes, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
        parts[part] = planes.reshape(-1, 3, _CIFAR10_SIDE, _CIFAR10_SIDE).transpose(0, 2, 3, 1), labels
    return parts


def _check_batch(planes: np.ndarray, labels: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    expected = (len(labels), _CIFAR10_PIXELS)
    if planes.dtype != np.uint8 or planes.shape != expected or not len(labels) or labels.max() >= len(CIFAR10_CLASSES):
        raise ValueError(
            f"Expected {path} to hold images of {_CIFAR10_PIXELS} bytes with labels from 0 to 9, but it has "
            f"{planes.dtype} values of shape {planes.shape} for {len(labels)} labels; fetch the archive again."
        )
    return planes, labels.astype(np.uint8)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and numpy arrays, and nothing else: a pickle can run any code."""

    _allowed = array_pickle_names()

    def find_class(self, module: str, name: str):
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self._allowed[module, name]


def _read_pickled_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
        return np.asarray(batch["data"]), np.asarray(batch["labels"], dtype=np.int64)
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"Expected {path} to be a pickle of arrays with 'data' and 'labels', but it cannot be read "
            f"({type(error).__name__}: {error}); fetch the archive again, from its author's page."
        ) from error


def _read_sprites(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    files = sorted(folder.glob(f"{part}_*.webp"))
    if not files or not (folder / f"{part}_labels.npy").is_file():
        raise FileNotFoundError(
            f"Expected {part}_labels.npy and {part}_00.webp, ... in {folder}, but it has {_listing(folder)}; copy all."
        )
    labels = np.load(folder / f"{part}_labels.npy", allow_pickle=False)
    pixels = np.concatenate([_tiles(path) for path in files])
    if labels.dtype != np.uint8 or labels.shape != (len(pixels),) or labels.max() >= len(CIFAR10_CLASSES):
        raise ValueError(
            f"Expected a label from 0 to 9 for each of the {len(pixels)} images in {part}_*.webp, but "
            f"{part}_labels.npy in {folder} is {labels.dtype} of shape {labels.shape}; copy all files again."
        )
    return pixels, labels


def _tiles(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            sprite = np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected a sprite in {path}, but it cannot be decoded ({error}); copy it again.") from error
    rows, columns = sprite.shape[0] // _CIFAR10_SIDE, sprite.shape[1] // _CIFAR10_SIDE
    if sprite.shape != (rows * _CIFAR10_SIDE, columns * _CIFAR10_SIDE, 3):
        raise ValueError(
            f"Expected {path} to be tiles of {_CIFAR10_SIDE}x{_CIFAR10_SIDE} pixels, but it has "
            f"{sprite.shape[1]}x{sprite.shape[0]} pixels; copy it again."
        )
    tiles = sprite.reshape(rows, _CIFAR10_SIDE, columns, _CIFAR10_SIDE, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * columns, _CIFAR10_SIDE, _CIFAR10_SIDE, 3)


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "no files"
