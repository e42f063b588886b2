"""The processes that a launcher started, and launches that did not start what was asked for."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def launched_processes() -> PartialState:
    """The processes of this run, connected with each other: by gloo where there is no GPU.

    Raises:
        RuntimeError: See [`check_launch`].
    """
    if "WORLD_SIZE" in os.environ and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # training arguments read it too
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    # Processes that wait for another one's long work must not give up after the default 30 minutes.
    state = PartialState(cpu=cpu, timeout=timedelta(days=2))
    check_launch(state.num_processes)
    return state


def check_launch(num_processes: int) -> None:
    """Compares the processes that a launcher started with those that know of each other.

    Args:
        num_processes: As `PartialState` or `world_size` of the training arguments has it.

    Raises:
        RuntimeError: If several processes were started that each believe to be alone, and would all do the same work;
            or if several were asked for and only one was started, which would train with smaller batches.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > num_processes:
        raise RuntimeError(
            f"{started} processes were started, but each believes to be alone, so that all would do the same work. On "
            "a machine without a GPU set ACCELERATE_USE_CPU=true."
        )
    # accelerate's launcher (1.15) sets MASTER_PORT where several processes are asked for, and starts a single one,
    # without WORLD_SIZE, unless it finds several GPUs or is told `--multi_gpu`.
    asked = "MASTER_PORT" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    if num_processes == 1 and asked and "WORLD_SIZE" not in os.environ:
        raise RuntimeError(
            "`accelerate launch` was asked for several processes but started only this one. Add `--multi_gpu`, on "
            "CPUs too (see recipes/accelerate/cpu.yaml). If one process is what you want, pass `--num_processes 1` "
            "and unset MASTER_PORT."
        )
