import datasets
import numpy as np
import pytest
import torch

from editable_hf.data.image_requests import (
    ImageEditRequests,
    RankDistribution,
    classes_at_ranks,
    make_image_requests,
)


def chi_square(counts, probabilities):
    expected = np.asarray(probabilities, dtype=float) * np.sum(counts)
    return ((np.asarray(counts) - expected) ** 2 / expected).sum()


def rank_by_hand(row, target):
    # The number of classes that come before it: higher score, or the same score and a lower index.
    return sum(score > row[target] or (score == row[target] and i < target) for i, score in enumerate(row))


@pytest.fixture
def images():
    dataset = datasets.Dataset.from_dict({"number": list(range(7))})
    # Adds noise, as an augmentation would.
    return dataset.with_transform(
        lambda batch: {"pixel_values": [torch.full((3, 2, 2), float(n)) + torch.rand(()) / 2 for n in batch["number"]]}
    )


def test_requests_take_each_image_once_and_classes_uniformly():
    labels = [index % 10 for index in range(5000)]
    requests = make_image_requests(labels, 10, 5000, seed=0)
    assert requests.column_names == ["id", "image_index", "label", "target"]
    assert list(requests["id"]) == list(range(5000))
    assert sorted(requests["image_index"]) == list(range(5000))
    assert list(requests["image_index"]) != list(range(5000))
    assert [labels[image] for image in requests["image_index"]] == list(requests["label"])
    # 0.1% of chi-square with 9 degrees of freedom, and with 99 for class wanted by true class.
    assert chi_square(np.bincount(requests["target"], minlength=10), [0.1] * 10) < 27.9
    pairs = np.asarray(requests["label"]) * 10 + np.asarray(requests["target"])
    assert chi_square(np.bincount(pairs, minlength=100), [0.01] * 100) < 148.2


def test_sampled_images_are_uniform():
    counts = np.zeros(20)
    for seed in range(60):
        counts[list(make_image_requests([0] * 20, 3, 5, seed)["image_index"])] += 1
    assert chi_square(counts, [1 / 20] * 20) < 43.8  # 0.1%, 19 degrees of freedom


def test_requests_depend_on_the_seed_alone():
    first, again, other = (make_image_requests([0] * 50, 4, 20, seed).to_list() for seed in (1, 1, 2))
    assert first == again and first != other


def test_ranks_of_predictions():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 8, generator=generator)
    logits[:50] = logits[:50].round()  # ties
    targets = torch.randint(8, (200,), generator=generator)
    expected = [rank_by_hand(row, target) for row, target in zip(logits.tolist(), targets.tolist(), strict=True)]
    distribution = RankDistribution.of(logits, targets)
    assert distribution.counts.tolist() == np.bincount(expected, minlength=8).tolist()
    torch.testing.assert_close(distribution.frequencies.sum().item(), 1.0)
    assert classes_at_ranks(logits, torch.tensor(expected)).tolist() == targets.tolist()


def test_ranks_are_sampled_by_frequency():
    distribution = RankDistribution(torch.tensor([10, 0, 30, 60]))
    drawn = distribution.sample(torch.Generator().manual_seed(0), 20_000)
    counts = np.bincount(drawn, minlength=4)
    assert counts[1] == 0
    assert chi_square(counts[[0, 2, 3]], [0.1, 0.3, 0.6]) < 13.8  # 0.1%, 2 degrees of freedom


def test_fixed_requests_give_their_rows(images):
    requests = make_image_requests([0] * 7, 3, 4, seed=0)
    rows = ImageEditRequests(images, requests=requests)
    assert len(rows) == 4 and len(list(rows)) == 4
    for index in range(4):
        assert sorted(rows[index]) == ["pixel_values", "target"]
        assert rows[index]["target"] == requests[index]["target"]
        assert int(rows[index]["pixel_values"][0, 0, 0]) == requests[index]["image_index"]
    assert not torch.equal(rows[0]["pixel_values"], rows[0]["pixel_values"])  # augmented anew
    with pytest.raises(IndexError, match="from 0 to 3, but got 4"):
        rows[4]


def test_drawn_classes_depend_on_seed_and_index_alone(images):
    rows = ImageEditRequests(images, num_classes=5, seed=3)
    assert len(rows) == 7 and len(list(rows)) == 7
    targets = [rows[index]["target"] for index in range(40)]
    torch.manual_seed(99)
    again = ImageEditRequests(images, num_classes=5, seed=3)
    assert [again[index]["target"] for index in reversed(range(40))] == targets[::-1]
    other = ImageEditRequests(images, num_classes=5, seed=4)
    shifted = [other[index]["target"] for index in range(40)]
    assert shifted != targets and shifted[:-1] != targets[1:]
    assert [int(rows[index]["pixel_values"][0, 0, 0]) for index in (0, 6, 7, 20)] == [0, 6, 0, 6]
    counts = np.bincount([rows[index]["target"] for index in range(3000)], minlength=5)
    assert chi_square(counts, [0.2] * 5) < 18.5  # 0.1%, 4 degrees of freedom
    # One image over the epochs.
    assert chi_square(np.bincount([rows[7 * epoch]["target"] for epoch in range(1500)], minlength=5), [0.2] * 5) < 18.5


def test_drawn_ranks_stand_in_the_rows(images):
    rows = ImageEditRequests(images, ranks=RankDistribution(torch.tensor([0, 3, 1])), seed=0)
    assert sorted(rows[0]) == ["pixel_values", "rank"]
    counts = np.bincount([rows[index]["rank"] for index in range(2000)], minlength=3)
    assert counts[0] == 0 and chi_square(counts[1:], [0.75, 0.25]) < 10.8


def test_rows_collate(images):
    batch = next(iter(torch.utils.data.DataLoader(ImageEditRequests(images, num_classes=5), batch_size=4)))
    assert batch["pixel_values"].shape == (4, 3, 2, 2) and batch["target"].dtype == torch.int64


LOGITS = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0] * 4, 3, 5, 0), "between 1 and 4 edit requests, one an image, but 5 are asked for"),
        (([0] * 4, 3, 0, 0), "but 0 are asked for"),
        (([0, 1, 2, 3], 3, 2, 0), "labels from 0 to 2, but got 3"),
    ],
)
def test_requests_that_make_no_sense_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_image_requests(*arguments)


def test_ranks_that_make_no_sense_are_errors():
    with pytest.raises(ValueError, match=r"shape \(3,\) that sums to 0"):
        RankDistribution(torch.zeros(3))
    with pytest.raises(ValueError, match="targets from 0 to 2, but got 3"):
        RankDistribution.of(LOGITS, [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"shape \(2, num_classes\), .* but got \(4, 3\)"):
        RankDistribution.of(LOGITS, [0, 1])
    with pytest.raises(ValueError, match="perhaps with NaN"):
        RankDistribution.of(LOGITS / 0, [0, 1, 2, 2])


def test_rows_that_make_no_sense_are_errors(images):
    with pytest.raises(ValueError, match="exactly one of .*, but got none"):
        ImageEditRequests(images)
    with pytest.raises(ValueError, match=r"but got \['num_classes', 'ranks'\]"):
        ImageEditRequests(images, num_classes=3, ranks=RankDistribution(torch.ones(3)))
    with pytest.raises(ValueError, match="`image_index` below 7, the number of images, but the largest is"):
        ImageEditRequests(images, requests=make_image_requests([0] * 90, 3, 90, 0))
    with pytest.raises(ValueError, match=r"give `pixel_values`, but its rows have \['number'\]"):
        ImageEditRequests(images.with_format(None), num_classes=3)[0]
