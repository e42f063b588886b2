from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("train_worker.py")
TESTS = WORKER.parents[1]  # for `tiny_models`
SETUPS = ["sentences", "accumulated", "tokens", "distillation", "plain"]

pytestmark = pytest.mark.distributed


def launch(command, timeout=240):
    path = f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    # In a session of its own: where one process waits for another forever, both must be ended with torchrun.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate()
        pytest.fail(f"No end after {timeout} s: {output[-4000:]}")
    assert process.returncode == 0, output[-4000:]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What a process alone and two together saved, by set-up."""
    folder = tmp_path_factory.mktemp("distributed")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for launcher in ([sys.executable], torchrun):
        launch([*launcher, str(WORKER), str(folder)])
    return {name: [torch.load(folder / f"{name}-{kind}.pt") for kind in ("1-0", "2-0", "2-1")] for name in SETUPS}


def largest_relative_error(actual, expected):
    assert set(actual) == set(expected)
    return max(
        ((actual[name] - value).norm() / value.norm()).item()
        for name, value in expected.items()
        if value.norm() > 1e-9
    )


@pytest.mark.parametrize("name", SETUPS)
def test_gradient_is_the_average(results, name):
    alone, first, second = results[name]
    for step, expected in enumerate(alone["gradients"]):
        errors = [largest_relative_error(rank["gradients"][step], expected) for rank in (first, second)]
        print(f"{name}, step {step}: largest relative error of a gradient {max(errors):.1e}")
        assert max(errors) < 1e-6
    assert len(first["gradients"]) == 2


@pytest.mark.parametrize("name", SETUPS)
def test_processes_stay_equal(results, name):
    alone, first, second = results[name]
    assert all(torch.equal(value, second["state"][key]) for key, value in first["state"].items())
    for key, value in first["state"].items():
        torch.testing.assert_close(value, alone["state"][key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in SETUPS if name != "plain"])
def test_processes_took_different_numbers_of_steps(results, name):
    alone, first, second = results[name]
    assert first["edit_steps"][0] > 1 and second["edit_steps"][0] == 0
    interleaved = [steps for both in zip(first["edit_steps"], second["edit_steps"], strict=True) for steps in both]
    assert interleaved == alone["edit_steps"]
    assert alone["gradients"][0]["editor.beta"] != 0


@pytest.mark.parametrize("name", SETUPS)
def test_logs_are_averages_over_processes(results, name):
    alone, first, _ = results[name]
    for mine, expected in zip(first["logs"], alone["logs"], strict=True):
        assert set(mine) == set(expected)
        for key in set(mine) - {"epoch"}:
            assert mine[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-9), key
