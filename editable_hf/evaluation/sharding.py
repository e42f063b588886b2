"""Work in groups, done by one process or shared by all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from accelerate.utils import gather_object

from editable_hf.launch import launched_processes

Item = TypeVar("Item")
Result = TypeVar("Result")


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
