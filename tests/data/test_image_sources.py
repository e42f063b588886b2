import os
import pickle
import struct
from pathlib import Path

import datasets
import numpy as np
import pytest
from image_splits import pixels_of, sizes, sorted_rows
from PIL import Image

import editable_hf.data.image_sources as image_sources
import editable_hf.data.images as images
from editable_hf.data.image_sources import read_cifar10_folder
from editable_hf.data.images import load_image_data

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(scope="module")
def arrays():
    """Pixels and labels of "train" (5 batches of 8 images) and "test" (8 images)."""
    rng = np.random.default_rng(0)
    return {
        part: (rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10)
        for part, count in (("train", 40), ("test", 8))
    }


def batches(arrays):
    for part, stem in [("train", f"data_batch_{n}") for n in range(1, 6)] + [("test", "test_batch")]:
        start = 8 * (int(stem[-1]) - 1) if part == "train" else 0
        pixels, labels = (array[start : start + 8] for array in arrays[part])
        yield stem, pixels.transpose(0, 3, 1, 2).reshape(8, -1), labels


def python2_pickle(planes, labels):
    """Protocol 2 as Python 2 wrote it: byte strings, and numpy's names of that time."""

    def text(value):
        return b"U" + bytes([len(value)]) + value.encode()

    def number(value):
        return b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n" + text("u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text("|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text("b") + b"\x87R"
    array += b"(" + number(1) + number(planes.shape[0]) + number(planes.shape[1]) + b"\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<i", planes.nbytes) + planes.tobytes() + b"tb"
    listed = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text("data") + array + text("labels") + listed + b"u."


def write_python2(folder, arrays):
    for stem, planes, labels in batches(arrays):
        (folder / stem).write_bytes(python2_pickle(planes, labels))


def write_python3(folder, arrays):
    for stem, planes, labels in batches(arrays):
        (folder / stem).write_bytes(pickle.dumps({"data": planes, "labels": labels.tolist()}, protocol=3))


def write_sprites(folder, arrays):
    for part, (pixels, labels) in arrays.items():
        np.save(folder / f"{part}_labels.npy", labels)
        for number in range(len(pixels) // 8):
            tiles = pixels[8 * number : 8 * number + 8]
            rows = [np.concatenate(list(tiles[start : start + 4]), axis=1) for start in (0, 4)]
            sprite = Image.fromarray(np.concatenate(rows))
            sprite.save(folder / f"{part}_{number:02d}.webp", lossless=True)


@pytest.mark.parametrize("write", [write_python2, write_python3, write_sprites])
def test_cifar10_layouts_give_the_same_images(tmp_path, arrays, write):
    write(tmp_path, arrays)
    data = load_image_data(str(tmp_path), num_validation=5)
    assert sizes(data) == {"train": 35, "validation": 5, "test": 8}
    assert np.array_equal(pixels_of(data.splits["test"]), arrays["test"][0])
    assert list(data.splits["test"]["label"]) == list(range(8))
    expected = sorted(image.tobytes() + bytes([label]) for image, label in zip(*arrays["train"], strict=True))
    assert sorted_rows(data.splits["train"], data.splits["validation"]) == expected
    assert data.class_names == NAMES and data.horizontal_flips and data.image_size == 32
    assert data.test_name == f"test of the folder {tmp_path.name} (8 images)"


def test_unpacked_archive_is_found_in_its_folder(tmp_path, arrays):
    (tmp_path / "cifar-10-batches-py").mkdir()
    write_python3(tmp_path / "cifar-10-batches-py", arrays)
    assert sizes(load_image_data(str(tmp_path), num_validation=10))["train"] == 30


def test_test_set_is_recognized_by_content(tmp_path, arrays, monkeypatch):
    write_python3(tmp_path, arrays)
    monkeypatch.setattr(images, "_CIFAR10_TEST_SHA256", images._sha256(*arrays["test"]))
    data = load_image_data(str(tmp_path), num_validation=5)
    assert data.test_name == "CIFAR-10 test set (8 images)" and data.name == f"CIFAR-10, folder {tmp_path.name}"
    # The order of the images does not matter, which label goes with which does.
    pixels, labels = arrays["test"]
    assert images._sha256(pixels[::-1], labels[::-1]) == images._sha256(pixels, labels)
    assert images._sha256(pixels, labels[::-1]) != images._sha256(pixels, labels)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


def test_pickles_run_no_code(tmp_path, arrays, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_python3(tmp_path, arrays)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({"data": Attack(), "labels": [0]}))
    with pytest.raises(ValueError, match=r"data_batch_2 to be a pickle of arrays.*it asks for \w+\.mkdir"):
        load_image_data(str(tmp_path))
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3", b"", "data_batch_3 to be a pickle of arrays.*EOFError"),
        ("data_batch_3", b"<html>", "data_batch_3 to be a pickle of arrays"),
        ("data_batch_3", pickle.dumps([1, 2], protocol=2), "data_batch_3 to be a pickle of arrays.*TypeError"),
        ("data_batch_3", pickle.dumps({"labels": [1]}, protocol=2), "KeyError: 'data'"),
        ("data_batch_3", pickle.dumps({"data": [[1] * 3072], "labels": [1]}), "int64 values of shape"),
        ("data_batch_3", pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}), "labels from 0 to 9"),
    ],
)
def test_damaged_pickles_are_errors(tmp_path, arrays, name, content, message):
    write_python3(tmp_path, arrays)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_image_data(str(tmp_path))


def test_missing_batch_is_an_error(tmp_path, arrays):
    write_python3(tmp_path, arrays)
    (tmp_path / "data_batch_4").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_4, but there is no such file"):
        load_image_data(str(tmp_path))


def test_damaged_sprites_are_errors(tmp_path, arrays):
    write_sprites(tmp_path, arrays)
    (tmp_path / "train_03.webp").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"a sprite in .*train_03\.webp, but it cannot be decoded"):
        load_image_data(str(tmp_path))
    Image.new("RGB", (40, 32)).save(tmp_path / "train_03.webp", lossless=True)
    with pytest.raises(ValueError, match=r"train_03\.webp to be tiles of 32x32 pixels, but it has 40x32"):
        load_image_data(str(tmp_path))
    (tmp_path / "train_03.webp").unlink()
    with pytest.raises(ValueError, match=r"each of the 32 images .* uint8 of shape \(40,\)"):
        load_image_data(str(tmp_path))


def test_folder_without_cifar10_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py.*sprites.*it has notes"):
        read_cifar10_folder(tmp_path)


@pytest.mark.skipif(not (SHARED / "cifar10").is_dir(), reason="needs CIFAR-10")
def test_cifar10_has_its_known_mean_and_deviation():
    arrays = image_sources.read_cifar10_folder(SHARED / "cifar10")
    pixels, labels = arrays["train"]
    assert pixels.shape == (50_000, 32, 32, 3) and np.bincount(labels).tolist() == [5000] * 10
    mean = pixels.mean((0, 1, 2)) / 255
    # Sum of squares in integers: float64 copies of all images would take a gigabyte.
    squares = np.array([np.bincount(pixels[..., c].ravel(), minlength=256) @ np.arange(256) ** 2 for c in range(3)])
    std = np.sqrt(squares / pixels[..., 0].size / 255**2 - mean**2)
    assert np.allclose(mean, [0.49140, 0.48216, 0.44653], atol=5e-6)
    assert np.allclose(std, [0.24703, 0.24349, 0.26159], atol=5e-6)
    assert np.allclose(images.CIFAR10_MEAN, mean, atol=1e-4) and np.allclose(images.CIFAR10_STD, std, atol=1e-4)
    assert len(arrays["test"][1]) == 10_000 and images._sha256(*arrays["test"]) == images._CIFAR10_TEST_SHA256


@pytest.fixture
def hub(monkeypatch):
    """Puts `hub["answer"]` in place of the network and records what was asked."""
    state = {}

    def load_dataset(*args, **kwargs):
        state["asked"] = (args, kwargs)
        if isinstance(state["answer"], Exception):
            raise state["answer"]
        return state["answer"]

    monkeypatch.setattr(image_sources, "load_dataset", load_dataset)
    return state


def hub_dataset(arrays, image_column="img", label_column="label", parts=("train", "test")):
    splits = {}
    for part in parts:
        split = image_sources.images_of_arrays(*arrays[part], NAMES).add_column("extra", [0] * len(arrays[part][1]))
        names = {"image": image_column, "label": label_column}
        splits[part] = split.rename_columns({old: new for old, new in names.items() if old != new})
    return datasets.DatasetDict(splits)


@pytest.mark.parametrize("names", [("img", "label"), ("image", "fine")])
def test_hub_dataset_gets_our_columns(hub, arrays, names):
    hub["answer"] = hub_dataset(arrays, *names)
    options = dict(zip(("image_column", "label_column"), names, strict=True))
    data = load_image_data("uoft-cs/cifar10", num_validation=4, revision="v1", **options)
    assert hub["asked"] == (("uoft-cs/cifar10",), {"revision": "v1"})
    assert sizes(data) == {"train": 36, "validation": 4, "test": 8}
    assert data.splits["test"].column_names == ["image", "label"]
    assert np.array_equal(pixels_of(data.splits["test"]), arrays["test"][0])
    assert data.test_name == "test of the hub dataset uoft-cs/cifar10 (8 images)"


def test_hub_dataset_without_a_column_or_split_is_an_error(hub, arrays):
    hub["answer"] = hub_dataset(arrays, "picture")
    with pytest.raises(ValueError, match=r"images in the column 'img' .* but it has \{'picture'"):
        load_image_data("uoft-cs/cifar10")
    hub["answer"] = hub_dataset(arrays, parts=("train",))
    with pytest.raises(ValueError, match="'test' of 'a/b' .* no such split"):
        load_image_data("a/b")


def test_unreachable_hub_is_an_error(hub):
    hub["answer"] = ConnectionError("Couldn't reach it")
    with pytest.raises(
        FileNotFoundError, match=r"'uoft-cs/cifar10' .*Couldn't reach.* give the folder .*cifar-10-batches-py"
    ):
        load_image_data("uoft-cs/cifar10")
