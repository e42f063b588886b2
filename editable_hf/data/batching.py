"""Batches of about equally long sentences, limited by tokens rather than by sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class TokenBatchSampler(Sampler[list[int]]):
    """Batches whose padded size stays below `max_tokens`, as fairseq's `--max-tokens`.

    Sentences are grouped by length once; each epoch shuffles the order of the batches with `seed + epoch`. Under
    several processes each sees its own batches, all the same number of them (a few are repeated to fill the last
    round), so the processes stay in step.

    Args:
        lengths: Tokens of each example: the longer of source and target.
        max_tokens: Upper bound on rows times the longest row of a batch.
        seed: Order of the examples within a length, and of the batches.
        rank: Index of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If an example alone exceeds `max_tokens`, or there is none.
    """

    def __init__(self, lengths: Sequence[int], max_tokens: int, seed: int = 0, rank: int = 0, world_size: int = 1):
        if len(lengths) == 0:
            raise ValueError("There is no example to batch: the training dataset is empty.")
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[longest] > max_tokens:
            raise ValueError(
                f"Example {longest} has {lengths[longest]} tokens, more than `max_tokens_per_batch`={max_tokens}; "
                "raise the limit or truncate the data."
            )
        self.seed, self.rank, self.world_size, self.epoch = seed, rank, world_size, 0
        shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
        self._batches: list[list[int]] = [[]]
        for index in sorted(shuffled, key=lengths.__getitem__):
            # In ascending order the newest example is the longest, hence the batch's padded length.
            if (len(self._batches[-1]) + 1) * lengths[index] > max_tokens:
                self._batches.append([])
            self._batches[-1].append(index)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the batches; the Trainer calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self._batches) // self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + 1 + self.epoch)
        order = torch.randperm(len(self._batches), generator=generator).tolist()
        for position in range(self.rank, len(self) * self.world_size, self.world_size):
            yield self._batches[order[position % len(order)]]
