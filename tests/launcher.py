from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent  # for `tiny_models` and its like


def launch(num_processes, worker, *arguments, timeout=240):
    """Runs a worker of `tests/distributed` as so many processes; as one without any launcher."""
    command = [sys.executable]
    if num_processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "recipes"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path}
    # In a session of its own: where one process waits for another forever, all must be ended with torchrun.
    process = subprocess.Popen(
        [*command, str(TESTS / "distributed" / worker), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate()
        pytest.fail(f"No end after {timeout} s: {output[-4000:]}")
    assert process.returncode == 0, output[-4000:]
    return output
