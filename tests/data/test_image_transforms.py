import math
import pickle

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from editable_hf.data.image_sources import images_of_arrays
from editable_hf.data.image_transforms import (
    EvalTransform,
    TrainTransform,
    decode_image,
    random_crop_box,
    with_pixels,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)


def normalized(array):
    values = np.empty((3, *array.shape[:2]))
    for channel in range(3):
        values[channel] = (array[:, :, channel] / 255.0 - MEAN[channel]) / STD[channel]
    return torch.tensor(values, dtype=torch.float32)


def chi_square(counts):
    counts = np.asarray(counts, dtype=float)
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


def placements(array, size, pad):
    # Every crop of the padded image, plain and mirrored, by its content.
    padded = np.zeros((size + 2 * pad, size + 2 * pad, 3), np.uint8)
    padded[pad : pad + size, pad : pad + size] = array
    found = {}
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            crop = padded[top : top + size, left : left + size]
            found[crop.tobytes()] = (top, left, False)
            found[crop[:, ::-1].tobytes()] = (top, left, True)
    return found


def test_crops_are_uniform_and_half_are_mirrored():
    array, num_draws = picture(16, 16), 20_000
    table = placements(array, 16, 2)
    torch.manual_seed(0)
    pixels = TrainTransform(16, **PLAIN).pixels([Image.fromarray(array)] * num_draws)
    assert pixels.shape == (num_draws, 3, 16, 16) and pixels.dtype == torch.float32
    raw = pixels.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    counts = np.zeros((5, 5, 2))
    for crop in raw:
        counts[table[crop.tobytes()]] += 1  # A crop that is none of the 50 is a KeyError.
    assert chi_square(counts) < 85.4  # 0.1% of chi-square with 49 degrees of freedom
    assert abs(counts[..., 1].sum() / num_draws - 0.5) < 4 * 0.5 / math.sqrt(num_draws)


def test_crops_equal_plain_indexing_and_normalization():
    array = picture(32, 32)
    table = placements(array, 32, 4)
    torch.manual_seed(1)
    pixels = TrainTransform(32, MEAN, STD, flip=False).pixels([Image.fromarray(array)])[0]
    candidates = [normalized(np.frombuffer(key, np.uint8).reshape(32, 32, 3)) for key in table]
    hits = [place for key, place in zip(candidates, table.values(), strict=True) if key.sub(pixels).abs().max() < 1e-5]
    assert len(hits) == 1 and hits[0][2] is False


def test_without_flip_nothing_is_mirrored():
    array = picture(8, 8)
    table = placements(array, 8, 1)
    pixels = TrainTransform(8, **PLAIN, flip=False).pixels([Image.fromarray(array)] * 200)
    raw = pixels.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    assert not any(table[crop.tobytes()][2] for crop in raw)


def test_images_too_small_to_pad_are_not_moved():
    array = picture(4, 4)
    pixels = TrainTransform(4, MEAN, STD, flip=False).pixels([Image.fromarray(array)])
    torch.testing.assert_close(pixels[0], normalized(array))


def test_resized_crop_boxes_have_the_stated_distribution():
    torch.manual_seed(0)
    width, height = 2000, 2000
    boxes = np.array([random_crop_box(width, height) for _ in range(8000)], dtype=float)
    left, top, crop_width, crop_height = boxes.T
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + crop_width <= width).all() and (top + crop_height <= height).all()
    area, ratio = crop_width * crop_height / (width * height), crop_width / crop_height
    assert 0.079 < area.min() < 0.09 and 0.95 < area.max() <= 1.0
    assert 0.749 < ratio.min() < 0.76 and 1.32 < ratio.max() < 1.335
    # Where every ratio fits in (area below 3/4), nothing is rejected: area uniform, ratio log-uniform.
    free = area < 0.75
    assert chi_square(np.histogram(area[free], 10, (0.08, 0.75))[0]) < 27.9  # 0.1%, 9 degrees of freedom
    assert chi_square(np.histogram(np.log(ratio[free]), 10, (math.log(3 / 4), math.log(4 / 3)))[0]) < 27.9
    assert chi_square(np.histogram(left / (width - crop_width + 1), 10, (0, 1))[0]) < 27.9


def test_resized_crop_of_an_extreme_shape_is_the_largest_central_box():
    assert random_crop_box(300, 10) == (143, 0, 13, 10)
    assert random_crop_box(10, 300) == (0, 143, 10, 13)


def test_resized_crop_is_crop_then_bilinear_resize_then_flip():
    image = Image.fromarray(picture(40, 60))
    torch.manual_seed(3)
    pixels = TrainTransform(24, MEAN, STD, kind="resized_crop").pixels([image, image])
    torch.manual_seed(3)
    expected = []
    for left, top, width, height in (random_crop_box(60, 40), random_crop_box(60, 40)):
        part = Image.fromarray(np.asarray(image)[top : top + height, left : left + width])
        expected.append(np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR)))
    for array, mirrored, result in zip(expected, torch.rand(2) < 0.5, pixels, strict=True):
        torch.testing.assert_close(result, normalized(array[:, ::-1] if mirrored else array))


def test_seed_governs_and_transforms_pickle():
    image = Image.fromarray(picture(32, 32))
    for transform in (TrainTransform(32, MEAN, STD), TrainTransform(32, MEAN, STD, kind="resized_crop")):
        torch.manual_seed(5)
        first = transform.pixels([image] * 4)
        torch.manual_seed(5)
        assert torch.equal(pickle.loads(pickle.dumps(transform)).pixels([image] * 4), first)
        assert not torch.equal(transform.pixels([image] * 4), first)


def test_eval_without_resize_only_normalizes():
    array = picture(16, 16)
    torch.testing.assert_close(EvalTransform(16, MEAN, STD).pixels([Image.fromarray(array)])[0], normalized(array))


@pytest.mark.parametrize(("height", "width"), [(20, 33), (33, 20), (20, 20)])
def test_eval_resizes_the_shorter_side_and_crops_the_center(height, width):
    image = Image.fromarray(picture(height, width))
    scaled = np.asarray(image.resize((width * 10 // min(height, width), height * 10 // min(height, width)), 2))
    assert min(scaled.shape[:2]) == 10
    top, left = round((scaled.shape[0] - 8) / 2), round((scaled.shape[1] - 8) / 2)
    pixels = EvalTransform(8, MEAN, STD, resize=10).pixels([image])
    torch.testing.assert_close(pixels[0], normalized(scaled[top : top + 8, left : left + 8]))


def test_dataset_gives_model_inputs_alone_and_through_a_loader():
    arrays = np.stack([picture(8, 8, seed) for seed in range(5)])
    dataset = images_of_arrays(arrays, [0, 1, 1, 0, 1], ["a", "b"])
    for wrapped in (
        with_pixels(dataset, EvalTransform(8, MEAN, STD)),
        dataset.with_transform(EvalTransform(8, MEAN, STD)),
    ):
        row = wrapped[3]
        assert sorted(row) == ["labels", "pixel_values"] and row["labels"] == 0
        torch.testing.assert_close(row["pixel_values"], normalized(arrays[3]))
        batch = next(iter(torch.utils.data.DataLoader(wrapped, batch_size=5)))
        assert batch["pixel_values"].shape == (5, 3, 8, 8) and batch["labels"].tolist() == [0, 1, 1, 0, 1]
        torch.testing.assert_close(batch["pixel_values"][4], normalized(arrays[4]))


def test_grey_images_get_three_channels():
    grey = Image.fromarray(picture(8, 8)[..., 0])
    pixels = EvalTransform(8, **PLAIN).pixels([grey])
    assert torch.equal(pixels[0, 0], pixels[0, 2])


def test_broken_image_is_named_at_access(tmp_path):
    path = tmp_path / "broken.jpg"
    Image.fromarray(picture(64, 64)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-300])
    dataset = datasets.Dataset.from_dict({"image": [str(path)], "label": [0]}).cast_column("image", datasets.Image())
    with pytest.raises(ValueError, match=r"Expected an image in .*broken\.jpg, but it cannot be decoded"):
        with_pixels(dataset, EvalTransform(8, MEAN, STD, resize=8))[0]
    with pytest.raises(ValueError, match="Expected an image in the bytes of a row"):
        decode_image({"bytes": b"none", "path": None})


def test_wrong_sizes_and_options_are_errors():
    image = Image.fromarray(picture(8, 12))
    with pytest.raises(
        ValueError, match="Expected images of 8x8 pixels, but got one of 12x8; use `kind='resized_crop'`"
    ):
        TrainTransform(8, MEAN, STD).pixels([image])
    with pytest.raises(ValueError, match="Expected images of 8x8 pixels, but got one of 12x8; set `resize`"):
        EvalTransform(8, MEAN, STD).pixels([image])
    with pytest.raises(ValueError, match="'crop' or 'resized_crop', but got 'flip'"):
        TrainTransform(8, MEAN, STD, kind="flip")
    with pytest.raises(ValueError, match="`resize` to be at least `size`, but got 4 and 8"):
        EvalTransform(8, MEAN, STD, resize=4)
