"""Timing for the benchmark scripts: interleaved runs, medians with ranges, and ratios measured in one run."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from editable_hf.data.atomic import write_atomically
from editable_hf.experiments.report import environment
from editable_hf.seams.torch_seam import KernelCount


def time_interleaved(
    functions: Mapping[str, Callable[[], Any]], repeats: int, device: torch.device, warmups: int = 1
) -> dict[str, list[float]]:
    """Seconds of each function, `repeats` each, in rounds over all of them, so that a busy moment hits every one."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in tqdm(range(-warmups, repeats), desc="rounds", unit="round", leave=False):
        for name, function in functions.items():
            _wait(device)
            start = time.perf_counter()
            function()
            _wait(device)
            if round_number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(seconds: Mapping[str, list[float]], numerator: str, denominator: str) -> dict[str, float]:
    """Median, lowest and highest ratio of two functions over the rounds."""
    ratios = [a / b for a, b in zip(seconds[numerator], seconds[denominator], strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def format_seconds(seconds: Mapping[str, list[float]]) -> str:
    """One line for each function: median, lowest and highest."""
    width = max(map(len, seconds))
    lines = []
    for name, values in seconds.items():
        spread = f"({min(values):.3f} - {max(values):.3f}, n={len(values)})"
        lines.append(f"{name:<{width}}  {statistics.median(values):9.3f} s  {spread}")
    return "\n".join(lines)


def finish(results: Mapping[str, Any], ratios: Mapping[str, Any], path: str | None) -> None:
    """Writes everything to `path` if given, and prints the named ratios as the last line, one JSON object.

    `results` hold the command's arguments as `config` and its `seed`, as in what `write_results` writes.
    """
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({**environment(), **results, "ratios": ratios}, indent=2) + "\n")
    print(json.dumps(ratios))


def count_kernels(function: Callable[[], Any]) -> int:
    """Kernels that one call dispatches, backward passes included, views left out; the same on every machine."""
    with KernelCount() as kernels:
        function()
    return kernels.count
