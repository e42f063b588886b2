from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editable_hf.data.batching import TokenBatchSampler

LENGTHS = [3 + (7 * index) % 17 for index in range(101)]
lengths_lists = st.lists(st.integers(1, 20), min_size=1, max_size=60)


@given(lengths_lists, st.integers(20, 90), st.integers(0, 5), st.integers(0, 3))
def test_every_example_once_and_never_too_many_tokens(lengths, max_tokens, seed, epoch):
    sampler = TokenBatchSampler(lengths, max_tokens, seed)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert sorted(chain.from_iterable(batches)) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[index] for index in batch) <= max_tokens for batch in batches)


def test_batches_are_well_filled_and_of_similar_lengths():
    batches = list(TokenBatchSampler(LENGTHS, 80))
    padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
    assert padded < 1.1 * sum(LENGTHS)
    assert len(batches) <= 1.3 * sum(LENGTHS) / 80


def test_order():
    sampler = TokenBatchSampler(LENGTHS, 80, seed=1)
    first, again = list(sampler), list(sampler)
    assert first == again == list(TokenBatchSampler(LENGTHS, 80, seed=1))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first and sorted(second) == sorted(first)
    assert sorted(TokenBatchSampler(LENGTHS, 80, seed=2)) != sorted(first)
    sampler.set_epoch(0)
    assert list(sampler) == first


def test_batches_are_not_in_order_of_length():
    longest = [max(LENGTHS[index] for index in batch) for batch in TokenBatchSampler(LENGTHS, 80)]
    assert longest != sorted(longest)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("epoch", [0, 1])
def test_processes_share_an_epoch(world_size, epoch):
    def batches(**options):
        sampler = TokenBatchSampler(LENGTHS, 80, seed=3, **options)
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return [tuple(batch) for batch in sampler]

    ranks = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
    whole = batches()
    assert len({len(rank) for rank in ranks}) == 1
    # What the last round lacks is filled up from the beginning; everything else is seen once.
    repeated = world_size * len(ranks[0]) - len(whole)
    assert 0 <= repeated < world_size
    interleaved = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert interleaved == whole + whole[:repeated]


def test_fewer_batches_than_processes():
    ranks = [list(TokenBatchSampler([5], 10, rank=rank, world_size=3)) for rank in range(3)]
    assert ranks == [[[0]]] * 3


def test_example_that_is_too_long():
    with pytest.raises(ValueError, match=r"Example 2 has 31 tokens, more than `max_tokens_per_batch`=30"):
        TokenBatchSampler([4, 30, 31, 5], 30)
    assert sorted(chain.from_iterable(TokenBatchSampler([4, 30, 5], 30))) == [0, 1, 2]


def test_no_example():
    with pytest.raises(ValueError, match="the training dataset is empty"):
        TokenBatchSampler([], 30)
