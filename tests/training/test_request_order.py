from __future__ import annotations

from types import SimpleNamespace

from editable_hf.training.request_order import RequestOrder


def order(num_requests=24, rank=0, world_size=1, accumulation=1, edits_per_step=1):
    args = SimpleNamespace(
        process_index=rank,
        world_size=world_size,
        gradient_accumulation_steps=accumulation,
        edits_per_step=edits_per_step,
        edits_at_once=1,
        seed=5,
    )
    return RequestOrder(num_requests, args)


def test_an_epoch_of_all_processes_and_micro_batches_is_a_permutation():
    orders = [order(rank=rank, world_size=2, accumulation=3, edits_per_step=2) for rank in range(2)]
    rows = [row for step in range(2) for _ in range(3) for each in orders for row in each.rows(step)]
    assert sorted(rows) == list(range(24)) != rows


def test_a_resumed_run_draws_what_the_interrupted_one_would_have():
    whole, resumed = order(accumulation=2), order(accumulation=2)
    expected = {step: [whole.rows(step), whole.rows(step)] for step in range(20)}
    assert [[resumed.rows(step), resumed.rows(step)] for step in range(11, 20)] == [
        expected[step] for step in range(11, 20)
    ]


def test_one_process_sees_what_two_see_together():
    alone = order(accumulation=2)
    pair = [order(rank=rank, world_size=2) for rank in range(2)]
    assert [alone.rows(0), alone.rows(0)] == [each.rows(0) for each in pair]
