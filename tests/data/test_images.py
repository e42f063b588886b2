import shutil

import datasets
import numpy as np
import pytest
from image_folders import SAMPLE
from image_splits import pixels_of, sizes, sorted_rows
from PIL import Image

import editable_hf.data.images as images
from editable_hf.data.images import load_image_data, load_natural_adversarial


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="the embedded images are scikit-learn's")
    return load_image_data("embedded")


def test_digits_are_split_and_described(digits):
    assert sizes(digits) == {"train": 1197, "validation": 200, "test": 400}
    assert digits.name == "scikit-learn's digits"
    assert digits.test_name == "test part of scikit-learn's digits (400 images)"
    assert digits.class_names == [str(digit) for digit in range(10)] and digits.class_ids["7"] == 7
    assert digits.horizontal_flips is False and digits.image_size == 16
    assert isinstance(digits.splits["test"].features["image"], datasets.Image)
    assert isinstance(digits.splits["test"].features["label"], datasets.ClassLabel)
    assert digits.splits["train"][0]["image"].mode == "RGB"
    # Over training and validation images, which the mean was taken of.
    together = np.concatenate([pixels_of(digits.splits[part]) for part in ("train", "validation")]) / 255
    assert np.allclose(digits.mean, together.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(digits.std, together.std((0, 1, 2)), atol=1e-4)


def test_digits_are_scikit_learns_and_in_one_split_each(digits):
    from sklearn.datasets import load_digits

    original = load_digits()
    eight = load_image_data("embedded", image_size=8)
    expected = sorted(
        np.repeat(np.rint(image * 255 / 16).astype(np.uint8)[..., None], 3, -1).tobytes() + bytes([label])
        for image, label in zip(original.images, original.target.tolist(), strict=True)
    )
    assert sorted_rows(*eight.splits.values()) == expected
    assert pixels_of(digits.splits["test"]).shape == (400, 16, 16, 3)


def test_seed_changes_validation_but_not_the_test_set(digits):
    again, other = load_image_data("embedded"), load_image_data("embedded", seed=1)
    for part in digits.splits:
        assert sorted_rows(again.splits[part]) == sorted_rows(digits.splits[part])
    assert sorted_rows(other.splits["test"]) == sorted_rows(digits.splits["test"])
    assert sorted_rows(other.splits["validation"]) != sorted_rows(digits.splits["validation"])


def test_limits_take_samples():
    pytest.importorskip("sklearn")
    data = load_image_data(
        "embedded", num_validation=100, max_train_samples=30, max_validation_samples=20, max_test_samples=10
    )
    assert sizes(data) == {"train": 30, "validation": 20, "test": 10}
    assert data.test_name == "test part of scikit-learn's digits (10 sampled of 400 images)"
    with pytest.raises(ValueError, match="limit for 'test' is 0"):
        load_image_data("embedded", max_test_samples=0)
    with pytest.raises(ValueError, match="between 1 and 1396 of 1397 training images, but `num_validation` is 1397"):
        load_image_data("embedded", num_validation=1397)


def test_validation_images_of_the_test_set():
    data = load_image_data("embedded", num_validation=100, validation_from="test", seed=1)
    assert sizes(data) == {"train": 1397, "validation": 100, "test": 300}
    assert data.test_name == "test part of scikit-learn's digits (300 sampled of 400 images)"
    whole = load_image_data("embedded").splits["test"]["image"]
    parts = [image for part in ("validation", "test") for image in data.splits[part]["image"]]
    assert sorted(image.tobytes() for image in parts) == sorted(image.tobytes() for image in whole)
    with pytest.raises(ValueError, match="between 1 and 399 of 400 test images, but `num_validation` is 400"):
        load_image_data("embedded", num_validation=400, validation_from="test")
    with pytest.raises(ValueError, match="`validation_from` must be 'train' or 'test', got 'val'"):
        load_image_data("embedded", validation_from="val")


def test_missing_scikit_learn_is_an_error(monkeypatch):
    monkeypatch.setattr("editable_hf.versions.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "editable_hf\[vision\]"'):
        load_image_data("embedded", image_size=9)  # of a size that was not read yet


def write_jpegs(folder, counts, side=20):
    for seed, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            array = np.random.default_rng((seed, number)).integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / name / f"{name}_{number}.JPEG", quality=95)


@pytest.fixture
def image_folder(tmp_path):
    folder = tmp_path / "imagenet"
    write_jpegs(folder / "train", {"n03": 12, "n01": 12, "n02": 16})
    write_jpegs(folder / "val", {"n03": 2, "n01": 1, "n02": 3})
    return folder


@pytest.mark.parametrize("name", ["validation", "val"])
def test_folder_with_three_splits_gives_them_as_they_are(image_folder, name):
    (image_folder / "val").rename(image_folder / "test")
    write_jpegs(image_folder / name, {"n01": 4, "n02": 1, "n03": 2})
    data = load_image_data(str(image_folder))
    assert sizes(data) == {"train": 40, "validation": 7, "test": 6}
    assert data.test_name == "test of the folder imagenet (6 images)"
    assert list(data.splits["validation"]["label"]) == [0, 0, 0, 0, 1, 2, 2]
    with pytest.raises(ValueError, match="validation images of its own, but `num_validation` asks for 3"):
        load_image_data(str(image_folder), num_validation=3)
    with pytest.raises(ValueError, match="validation images of its own, but `validation_from` is 'test'"):
        load_image_data(str(image_folder), validation_from="test")


def test_folder_with_a_test_set_alone_holds_out_validation_images(image_folder):
    (image_folder / "val").rename(image_folder / "test")
    assert sizes(load_image_data(str(image_folder))) == {"train": 38, "validation": 2, "test": 6}


def test_two_folders_of_validation_images_are_an_error(image_folder):
    write_jpegs(image_folder / "validation", {"n01": 1})
    with pytest.raises(ValueError, match="has `validation` and `val`"):
        load_image_data(str(image_folder))


def test_files_that_are_left_out_are_counted(image_folder, caplog):
    Image.new("RGB", (8, 8)).save(image_folder / "train" / "n01" / "one.gif")
    (image_folder / "train" / "n02" / "notes.txt").write_text("?")
    (image_folder / "train" / "n02" / ".hidden").write_text("?")
    assert sizes(load_image_data(str(image_folder)))["train"] == 38
    (message,) = caplog.messages
    assert message.endswith("are left out: .gif (1), .txt (1).")


def test_folder_is_numbered_by_sorted_names_and_read_lazily(image_folder):
    data = load_image_data(str(image_folder))
    assert sizes(data) == {"train": 38, "validation": 2, "test": 6}
    assert data.class_names == ["n01", "n02", "n03"]
    assert data.test_name == "val of the folder imagenet (6 images)"
    assert list(data.splits["test"]["label"]) == [0, 1, 1, 1, 2, 2]
    stored = data.splits["test"].cast_column("image", datasets.Image(decode=False))[5]["image"]
    assert stored == {"bytes": None, "path": str(image_folder / "val" / "n03" / "n03_1.JPEG")}
    image = data.splits["test"][5]["image"]
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(Image.open(stored["path"])))
    assert data.image_size == 224 and data.mean == images.IMAGENET_MEAN
    files = {
        row["path"]
        for part in ("train", "validation")
        for row in data.splits[part].cast_column("image", datasets.Image(decode=False))["image"]
    }
    assert len(files) == 40


def test_class_ids_from_a_file_or_a_mapping(image_folder, tmp_path):
    path = tmp_path / "ids.tsv"
    path.write_text("n03\t0\nn02\t5\nn01\t2\n")
    for class_ids in (path, {"n03": 0, "n02": 5, "n01": 2}):
        data = load_image_data(str(image_folder), class_ids=class_ids)
        assert list(data.splits["test"]["label"]) == [2, 5, 5, 5, 0, 0]
        assert data.class_names == ["n03", "class 1", "n01", "class 3", "class 4", "n02"]


@pytest.mark.parametrize("content", ["n01\n", "n01\tx\n", "n01\t1\nn01\t2\n", "n01\t1\nn02\t1\n", ""])
def test_class_id_files_that_make_no_sense_are_errors(image_folder, tmp_path, content):
    path = tmp_path / "ids.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"(line \d of|class id in) .*ids\.tsv"):
        load_image_data(str(image_folder), class_ids=path)
    with pytest.raises(FileNotFoundError, match="none.tsv, but there is none"):
        load_image_data(str(image_folder), class_ids=tmp_path / "none.tsv")


def test_unknown_class_is_an_error(image_folder):
    with pytest.raises(ValueError, match="every folder of .*train, but 1 of 3 have none, e.g. n02"):
        load_image_data(str(image_folder), class_ids={"n01": 0, "n03": 1})


def test_missing_folders_are_errors(image_folder):
    write_jpegs(image_folder / "val", {"n09": 1})
    with pytest.raises(ValueError, match=r"class of .*val in .*train, but 1 have no folder there, e.g. n09"):
        load_image_data(str(image_folder))
    shutil.rmtree(image_folder / "val")
    with pytest.raises(FileNotFoundError, match="Expected a folder .*val with .* does not exist"):
        load_image_data(str(image_folder))
    for name in ("n01", "n02", "n03"):
        shutil.rmtree(image_folder / "train" / name)
    with pytest.raises(FileNotFoundError, match="train to hold a folder for each class, but it has no files"):
        load_image_data(str(image_folder))
    shutil.rmtree(image_folder / "train")
    with pytest.raises(FileNotFoundError, match="Expected a folder .*train with .* does not exist"):
        load_image_data(str(image_folder))


def test_empty_class_is_an_error(image_folder):
    (image_folder / "train" / "n04").mkdir()
    (image_folder / "train" / "n04" / "notes.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"images \(.*\.jpeg.*1 of 4 have none, e.g. .*n04"):
        load_image_data(str(image_folder))


def test_class_without_test_images_is_said(image_folder, caplog):
    shutil.rmtree(image_folder / "val" / "n02")
    assert len(load_image_data(str(image_folder)).splits["test"]) == 3
    assert "1 classes of" in caplog.text and "no test images, e.g. n02" in caplog.text


def test_natural_adversarial_examples_get_the_models_ids(image_folder, tmp_path):
    write_jpegs(tmp_path / "imagenet-a", {"n03": 2, "n01": 1})
    (tmp_path / "imagenet-a" / "README.txt").write_text("x")
    dataset = load_natural_adversarial(tmp_path / "imagenet-a", load_image_data(str(image_folder)).class_ids)
    assert dataset.column_names == ["image", "label"] and list(dataset["label"]) == [0, 2, 2]
    assert dataset.features["label"].names == ["n01", "n02", "n03"]
    assert dataset[0]["image"].size == (24, 20)
    with pytest.raises(ValueError, match="imagenet-a, but 1 of 2 have none, e.g. n03"):
        load_natural_adversarial(tmp_path / "imagenet-a", {"n01": 4})


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="needs the sample of 100 ImageNet images")
def test_real_imagenet_images_and_ids(tmp_path):
    lines = [line.split("\t") for line in (SAMPLE / "labels.tsv").read_text(encoding="utf-8").splitlines()[1:9]]
    for part in ("train", "val"):
        for _, _, wnid, *_ in lines:
            (tmp_path / part / wnid).mkdir(parents=True)
            shutil.copy(SAMPLE / "img" / f"{wnid}.jpg", tmp_path / part / wnid)
    ids = {line[2]: int(line[1]) for line in lines}
    data = load_image_data(str(tmp_path), class_ids=ids)
    assert list(data.splits["test"]["label"]) == list(ids.values())
    assert len(data.class_names) == 1 + max(ids.values()) and data.class_names[10] == lines[1][2]
    assert all(min(image.size) == 256 for image in data.splits["test"]["image"])
    assert list(load_natural_adversarial(tmp_path / "val", ids)["label"]) == list(ids.values())


def test_class_ids_of_what_numbers_its_own_classes_are_an_error():
    with pytest.raises(ValueError, match="`class_ids` are for a folder of photos, but 'embedded' numbers its own"):
        load_image_data("embedded", class_ids={"a": 0})
