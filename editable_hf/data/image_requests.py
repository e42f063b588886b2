"""Edit requests for classifiers: an image and the class wanted, drawn uniformly or by rank (sections 4.1, 4.3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RankDistribution:
    """How often the wanted class has each rank among a model's predictions (Figure 5, left).

    Attributes:
        counts: Examples by 0-based rank, `(num_classes,)`, int64; rank 0 is the class that the model predicts.
    """

    counts: Tensor

    def __post_init__(self):
        if self.counts.dim() != 1 or bool((self.counts < 0).any()) or not bool(self.counts.sum() > 0):
            raise ValueError(
                "Expected one count for each rank, none negative and at least one positive, but got a tensor of shape "
                f"{tuple(self.counts.shape)} that sums to {self.counts.sum().item()}; count the ranks of at least one "
                "example, with `RankDistribution.of`."
            )

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor | Sequence[int]) -> RankDistribution:
        """Counts the ranks that a model gives to the classes wanted, e.g. of natural adversarial examples.

        Args:
            logits: `(num_examples, num_classes)`, or any scores in the same order.
            targets: Classes wanted, `(num_examples,)`.

        Raises:
            ValueError: If shapes do not match, a class is out of range or a logit is not a number.
        """
        targets = torch.as_tensor(targets, device=logits.device)
        if logits.dim() != 2 or len(logits) != len(targets) or bool(logits.isnan().any()):
            raise ValueError(
                f"Expected numbers of shape ({len(targets)}, num_classes), one row for each example, but got "
                f"{tuple(logits.shape)}, perhaps with NaN; compute them for the same split, in its order."
            )
        _check_classes(targets.tolist(), logits.shape[1], "targets")
        ranks = (_by_falling_score(logits) == targets.unsqueeze(1)).long().argmax(dim=1)
        return cls(torch.bincount(ranks, minlength=logits.shape[1]).cpu())

    @property
    def frequencies(self) -> Tensor:
        """Fraction of the examples by rank, `(num_classes,)`, float64, summing to 1."""
        return self.counts.double() / self.counts.sum()

    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """Independent ranks, `(count,)`, int64."""
        return torch.multinomial(self.frequencies, count, replacement=True, generator=generator)


def classes_at_ranks(logits: Tensor, ranks: Tensor) -> Tensor:
    """The class at a rank of each row's predictions, sorted by falling probability.

    Args:
        logits: `(batch, num_classes)`.
        ranks: 0-based, `(batch,)`, int64.

    Returns:
        `(batch,)`, int64. Among equal logits the lower class comes first.
    """
    return _by_falling_score(logits).gather(1, ranks.to(logits.device).unsqueeze(1)).squeeze(1)


def make_image_requests(labels: Sequence[int], num_classes: int, num_requests: int, seed: int) -> Dataset:
    """Edit requests for the images of a split, each image at most once, in random order.

    The class is uniform over all classes (section 4.1). It may be the true one or the one that the model predicts;
    such an edit holds from the start and takes 0 steps.

    Args:
        labels: The true classes of the split, for the reports, `(num_images,)`.
        num_classes: Of the model.
        num_requests: At most `num_images`.
        seed: Decides images and classes.

    Returns:
        A dataset with columns `id`, `image_index`, `label`, `target`.

    Raises:
        ValueError: If more requests are asked for than there are images, or there is but one class.
    """
    labels = [int(label) for label in labels]
    if not 1 <= num_requests <= len(labels):
        raise ValueError(
            f"Expected between 1 and {len(labels)} edit requests, one an image, but {num_requests} are asked for; "
            "lower `num_requests` or use a larger split."
        )
    if num_classes < 2:
        raise ValueError(f"Expected at least 2 classes to edit between, got `num_classes`={num_classes}.")
    _check_classes(labels, num_classes, "labels")
    generator = torch.Generator().manual_seed(seed)
    images = torch.randperm(len(labels), generator=generator)[:num_requests].tolist()
    targets = torch.randint(num_classes, (num_requests,), generator=generator).tolist()
    chosen = [labels[image] for image in images]
    return Dataset.from_dict(
        {"id": list(range(num_requests)), "image_index": images, "label": chosen, "target": targets}
    )


class ImageEditRequests(torch.utils.data.Dataset):
    """Edit requests with their pixels, from a dataset that gives `pixel_values`, augmented anew at each access.

    Give exactly one of `requests`, `num_classes` and `ranks`. With either of the last two there is no end: row
    `index` is image `index % len(self)` with a class (or rank) that depends on `(seed, index)` alone, so that a
    resumed run draws what the interrupted one would have drawn.

    Args:
        dataset: Images with a transform, see [`with_pixels`].
        requests: A fixed list, of [`make_image_requests`].
        num_classes: Draw the class uniformly.
        ranks: Draw the rank of the class. Rows then hold `rank` in place of `target`, for whoever has the model's
            predictions to look up with [`classes_at_ranks`].
        seed: Not negative; decides classes and ranks that are drawn.

    Raises:
        ValueError: If not exactly one way of choosing classes is given.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        requests: Dataset | None = None,
        num_classes: int | None = None,
        ranks: RankDistribution | None = None,
        seed: int = 0,
    ):
        options = {"requests": requests, "num_classes": num_classes, "ranks": ranks}
        given = [name for name, value in options.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"Expected exactly one of `requests`, `num_classes` and `ranks`, but got {given or 'none'}; a class "
                "is either listed, drawn uniformly or drawn by rank."
            )
        if requests is not None and len(requests) and max(requests["image_index"]) >= len(dataset):
            raise ValueError(
                f"Expected every `image_index` below {len(dataset)}, the number of images, but the largest is "
                f"{max(requests['image_index'])}; give the split that the requests were made for."
            )
        self.dataset, self.requests, self.num_classes, self.ranks = dataset, requests, num_classes, ranks
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset) if self.endless else len(self.requests)

    @property
    def endless(self) -> bool:
        """Whether there is a request for every index: classes or ranks are drawn, not listed."""
        return self.requests is None

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`pixel_values` `(3, height, width)` and `target` (or `rank`), an int."""
        if index < 0 or (not self.endless and index >= len(self)):
            raise IndexError(f"Expected an edit request from 0 to {len(self) - 1}, but got {index}.")
        if not self.endless:
            request = self.requests[index]
            return {"pixel_values": self._pixels(request["image_index"]), "target": request["target"]}
        pixels, generator = self._pixels(index % len(self)), _generator(self.seed, index)
        if self.ranks is not None:
            return {"pixel_values": pixels, "rank": int(self.ranks.sample(generator, 1))}
        return {"pixel_values": pixels, "target": int(torch.randint(self.num_classes, (1,), generator=generator))}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Python would otherwise ask for rows until an IndexError, which never comes where rows are drawn.
        return (self[index] for index in range(len(self)))

    def _pixels(self, image: int) -> Tensor:
        row = self.dataset[image]
        if "pixel_values" not in row:
            raise ValueError(
                f"Expected the dataset to give `pixel_values`, but its rows have {sorted(row)}; attach a transform "
                "with `with_pixels(dataset, transform)`."
            )
        return row["pixel_values"]


def _generator(seed: int, index: int) -> torch.Generator:
    # Hashed: `seed + index` would give neighboring seeds the same draws, one index apart.
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def _by_falling_score(logits: Tensor) -> Tensor:
    return logits.argsort(dim=1, descending=True, stable=True)


def _check_classes(classes: Sequence[int], num_classes: int, name: str) -> None:
    wrong = [value for value in classes if not 0 <= value < num_classes]
    if wrong:
        raise ValueError(
            f"Expected {name} from 0 to {num_classes - 1}, but got {wrong[0]}; check `num_classes` and that images "
            "and model number the classes alike."
        )
