from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script, folder, *options):
    command = [sys.executable, str(SCRIPTS / script), "--rounds", "1", "--size", "tiny", "--device", "cpu"]
    command += ["--json", str(folder / "figures.json"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    ratios = json.loads(done.stdout.splitlines()[-1])
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["ratios"] == ratios and figures["machine"]["threads"] == 1
    return ratios, figures


def test_edit(tmp_path):
    ratios, figures = run("benchmark_edit.py", tmp_path)
    assert ratios["edit_speedup_k10"] > 1
    assert figures["checks"]["shared"]["loss"] < 1e-4


@pytest.mark.slow
def test_training(tmp_path):
    ratios, figures = run("benchmark_training.py", tmp_path)
    assert 1 < ratios["step_ratio_1000_k10"] < ratios["whole_model_step_ratio_1000_k10"]
    assert ratios["peak_memory_ratio"] > 0 and figures["checks"]["resnet"]["gradient"] < 1e-3


def test_image_drawdown(tmp_path):
    ratios, figures = run("benchmark_image_drawdown.py", tmp_path, "--num_images", "40")
    assert ratios["drawdown_speedup_chain3"]["median"] > 1 and ratios["drawdown_speedup_extra"]["median"] > 1
    assert figures["extra"]["check"]["gap"] < 1e-4 and figures["chain3"]["check"]["num_compared"] == 80
