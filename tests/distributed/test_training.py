from __future__ import annotations

import pytest
import torch
from launcher import launch

SETUPS = ["sentences", "uneven", "tokens", "distillation", "autocast", "loaded", "plain"]
COUNTS = (1, 2, 3)
EXACT = [name for name in SETUPS if name != "autocast"]

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each process of one, two and three saved, by set-up and number of processes."""
    folder = tmp_path_factory.mktemp("distributed")
    for count in COUNTS:
        launch(count, "train_worker.py", folder)

    def saved(name, count):
        return [torch.load(folder / f"{name}-{count}-{rank}.pt") for rank in range(count)]

    return {name: {count: saved(name, count) for count in COUNTS} for name in SETUPS}


def largest_relative_error(actual, expected):
    assert set(actual) == set(expected)
    return max(
        ((actual[name] - value).norm() / value.norm()).item()
        for name, value in expected.items()
        if value.norm() > 1e-9
    )


several = pytest.mark.parametrize("count", COUNTS[1:])
each_setup = pytest.mark.parametrize("name", SETUPS)
each_exact = pytest.mark.parametrize("name", EXACT)


@several
@each_exact
def test_gradient_is_that_of_one_process(results, name, count):
    (alone,), ranks = results[name][1], results[name][count]
    assert len(alone["gradients"]) == 2
    for step, expected in enumerate(alone["gradients"]):
        errors = [largest_relative_error(rank["gradients"][step], expected) for rank in ranks]
        print(f"{name}, {count} processes, step {step}: largest relative error of a gradient {max(errors):.1e}")
        assert max(errors) < 1e-6


@several
def test_gradient_under_bfloat16_autocast(results, count):
    """Three processes differentiate three times the loss, which bfloat16 with its 8 bits rounds otherwise."""
    (alone,), (first, *_) = results["autocast"][1], results["autocast"][count]
    whole, expected = (torch.cat([g.flatten() for g in each["gradients"][0].values()]) for each in (first, alone))
    error = ((whole - expected).norm() / expected.norm()).item()
    print(f"{count} processes: relative error of the gradient {error:.1e}")
    assert error < (1e-6 if count == 2 else 2**-7)


@several
@each_setup
def test_processes_stay_equal(results, name, count):
    (alone,), (first, *others) = results[name][1], results[name][count]
    for other in others:
        assert all(torch.equal(value, other["state"][key]) for key, value in first["state"].items())
    if name in EXACT:
        for key, value in first["state"].items():
            torch.testing.assert_close(value, alone["state"][key], rtol=1e-5, atol=1e-7)


@several
@pytest.mark.parametrize("name", [name for name in SETUPS if name != "plain"])
def test_processes_took_different_numbers_of_steps(results, name, count):
    (alone,), ranks = results[name][1], results[name][count]
    assert ranks[0]["edit_steps"][0] > 1 and ranks[1]["edit_steps"][0] == 0
    rounds = zip(*(rank["edit_steps"] for rank in ranks), strict=True)
    assert [steps for each in rounds for steps in each] == alone["edit_steps"]
    assert alone["gradients"][0]["editor.beta"] != 0


@several
@each_exact
def test_logs_are_averages_over_processes(results, name, count):
    (alone,), (first, *_) = results[name][1], results[name][count]
    for mine, expected in zip(first["logs"], alone["logs"], strict=True):
        assert set(mine) == set(expected)
        for key in set(mine) - {"epoch"}:
            assert mine[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-9), key
