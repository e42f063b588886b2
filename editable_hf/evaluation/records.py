"""Records of what was measured: the work is shared by all processes, and what a killed run left is not repeated."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm

from editable_hf.launch import launched_processes

Item = TypeVar("Item")
Result = TypeVar("Result")
Record = dict[str, Any]


def in_groups(
    items: Sequence[Item],
    size: int,
    measure: Callable[[Sequence[Item]], Sequence[Result]],
    shard: bool = True,
) -> Iterator[list[Result]]:
    """Measures consecutive groups of items, as many groups at a time as there are processes.

    With `shard`, all processes must iterate over it to the end, with the same items.

    Args:
        items: What is measured.
        size: Items in a group; fewer where some processes would otherwise have nothing to do.
        measure: Gives results that can be pickled. An exception ends this process; the launcher then ends the others.
        shard: Whether the processes share the groups. Without it each that calls this measures all of them.

    Yields:
        The results for the next items, in their order; with `shard` the same ones on every process.
    """
    state = launched_processes()
    num_processes, index = (state.num_processes, state.process_index) if shard else (1, 0)
    size = max(1, min(size, -(-len(items) // num_processes)))
    for start in range(0, len(items), size * num_processes):
        own = items[start + index * size :][:size]  # none for some processes at the end
        new = list(measure(own)) if own else []
        yield gather_object(new) if shard else new


def measured(
    items: Sequence[Item],
    size: int,
    measure: Callable[[Sequence[Item]], Sequence[Record]],
    *,
    path: Path | None = None,
    progress: str | None = None,
    unit: str = "edit",
    shard: bool = True,
    check: Callable[[Item, Record], None] = lambda item, record: None,
) -> list[Record]:
    """One record for each item, see [`in_groups`].

    Args:
        items: What is measured.
        size: Items in a group.
        measure: Gives the records of a group, which JSON can hold.
        path: JSONL file that gets one line for each item, as soon as its group is done; those that it holds already
            are not measured again. The main process alone reads and writes it.
        progress: Title of the progress bar of the main process, none if `None`.
        unit: What it counts.
        shard: See [`in_groups`].
        check: Raises an error where a record that is there is not of the item.
    """
    writes = launched_processes().is_main_process or not shard
    records = read_records(path)[: len(items)] if path is not None and writes else []
    if shard:
        (records,) = broadcast_object_list([records])
    for item, record in zip(items, records, strict=False):
        check(item, record)
    due, title = items[len(records) :], progress if writes else None
    with tqdm(total=len(due), desc=title, disable=title is None, unit=unit) as bar:
        for new in in_groups(due, size, measure, shard):
            records += new
            if path is not None and writes:
                with path.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in new)
            bar.update(len(new))
    return records


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file, without a last line that a killed run left unfinished (which is cut off)."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
