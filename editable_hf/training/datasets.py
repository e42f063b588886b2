"""What may be given as `train_dataset` and `edit_dataset` of a trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any

import datasets
import torch
from datasets import Dataset, DatasetDict, IterableDatasetDict

_STREAMS = (datasets.IterableDataset, torch.utils.data.IterableDataset)


def as_train_dataset(dataset: Any) -> Any:
    """A dataset that `Trainer` takes: a dict of columns as a `Dataset`, and anything else with rows as it is.

    Raises:
        TypeError: If it holds several splits, or has neither rows by number nor is a dataset to be read in order.
    """
    return dataset if dataset is None or isinstance(dataset, _STREAMS) else _with_rows(dataset, "train_dataset")


def as_requests(edit_dataset: Any, *columns: str) -> Sized:
    """Requests as a dataset whose rows are drawn by number.

    Args:
        edit_dataset: What the user gave.
        columns: What rows must have.

    Raises:
        TypeError: If rows cannot be drawn by number.
        ValueError: If there is none, or a column is missing.
    """
    if isinstance(edit_dataset, _STREAMS):
        raise _no_rows("edit_dataset", edit_dataset)
    edit_dataset = _with_rows(edit_dataset, "edit_dataset")
    if len(edit_dataset) == 0:
        raise ValueError("`edit_dataset` is empty; leave it out to train without edits.")
    present = sorted(edit_dataset[0])
    missing = set(columns) - set(present)
    if missing:
        raise ValueError(
            f"`edit_dataset` lacks the columns {', '.join(sorted(missing))}; it has {present}. Build it with "
            "`make_edit_requests`."
        )
    return edit_dataset


def _with_rows(dataset: Any, argument: str) -> Any:
    if isinstance(dataset, DatasetDict | IterableDatasetDict):
        raise TypeError(
            f"Expected one split as `{argument}`, got a {type(dataset).__name__} of {', '.join(dataset)}; choose one, "
            f"e.g. `{argument}[{next(iter(dataset), 'train')!r}]`."
        )
    if isinstance(dataset, Mapping):
        dataset = Dataset.from_dict(dataset)
        # What tensors were given as comes back as tensors, or transforms and models would get lists of numbers.
        return dataset.with_format("torch") if "pixel_values" in dataset.column_names else dataset
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise _no_rows(argument, dataset)
    return dataset


def _no_rows(argument: str, dataset: Any) -> TypeError:
    why = " because requests are drawn at random," if argument == "edit_dataset" else ""
    return TypeError(
        f"Expected `{argument}` to have a length and rows by number,{why} got a {type(dataset).__name__}; make it a "
        "list or `Dataset.from_list(list(rows))`."
    )
