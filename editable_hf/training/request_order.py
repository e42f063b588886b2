"""Which edit requests each step of training draws."""

from __future__ import annotations

import torch
from transformers import TrainingArguments


def draw_requests(num_requests: int, first: int, count: int, seed: int, endless: bool = False) -> list[int]:
    """Rows `first, ..., first + count - 1` of an endless sequence of seeded permutations of the requests.

    A pure function, so that a resumed run draws what the interrupted one would have drawn. With `endless`, the rows of
    each further permutation count on from those before, for datasets that make up a request for any number.
    """
    rows = []
    for number in range(first, first + count):
        epoch, offset = divmod(number, num_requests)
        order = torch.randperm(num_requests, generator=torch.Generator().manual_seed(seed + epoch))
        rows.append(int(order[offset]) + endless * epoch * num_requests)
    return rows


class RequestOrder:
    """Which requests each micro-batch of each process edits with: a function of the update, so that runs resume.

    No two processes draw the same request in an epoch of requests.

    Args:
        num_requests: Size of the request dataset.
        args: Gives `edits_per_step`, `edits_at_once`, the accumulation, the processes and the permutations' seed.
        endless: See [`draw_requests`].
    """

    def __init__(self, num_requests: int, args: TrainingArguments, endless: bool = False):
        self.num_requests, self.args, self.endless = num_requests, args, endless
        self._step, self._micro_batch = -1, 0

    def start_update(self) -> None:
        """The next micro-batch is the first of its update, also where the update is tried again with less memory."""
        self._step = -1

    def rows(self, step: int) -> list[int]:
        """Rows for the next micro-batch of update `step`."""
        self._micro_batch = self._micro_batch + 1 if step == self._step else 0
        self._step = step
        args = self.args
        batch = (step * args.gradient_accumulation_steps + self._micro_batch) * args.world_size + args.process_index
        count = args.edits_per_step * args.edits_at_once
        return draw_requests(self.num_requests, batch * count, count, args.seed, self.endless)
