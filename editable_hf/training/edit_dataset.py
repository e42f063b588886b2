"""What may be given as `edit_dataset` of a language model's trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sized

from datasets import Dataset, DatasetDict, IterableDatasetDict


def as_requests(edit_dataset) -> Sized:
    """Requests as a dataset whose rows are drawn by number.

    Raises:
        TypeError: If rows cannot be drawn by number.
        ValueError: If there is none, or a column is missing.
    """
    if isinstance(edit_dataset, DatasetDict | IterableDatasetDict):
        raise TypeError(
            f"Expected the requests of one split as `edit_dataset`, got a {type(edit_dataset).__name__} of "
            f"{', '.join(edit_dataset)}; choose one, e.g. `edit_dataset[{next(iter(edit_dataset), 'train')!r}]`."
        )
    if isinstance(edit_dataset, Mapping):
        edit_dataset = Dataset.from_dict(edit_dataset)
    if not (hasattr(edit_dataset, "__len__") and hasattr(edit_dataset, "__getitem__")):
        raise TypeError(
            f"Expected `edit_dataset` to have a length and rows by number, because requests are drawn at random, got "
            f"a {type(edit_dataset).__name__}; make it a list or `Dataset.from_list(list(requests))`."
        )
    if len(edit_dataset) == 0:
        raise ValueError("`edit_dataset` is empty; leave it out to train without edits.")
    columns = sorted(edit_dataset[0])
    missing = {"input_ids", "labels", "alternatives"} - set(columns)
    if missing:
        raise ValueError(
            f"`edit_dataset` lacks the columns {', '.join(sorted(missing))}; it has {columns}. Build it with "
            "`make_edit_requests`."
        )
    return edit_dataset
