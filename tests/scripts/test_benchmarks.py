from __future__ import annotations

import json

import pytest


@pytest.fixture
def benchmark(run_script, tmp_path):
    """The ratios that a benchmark prints, and all figures that it writes."""

    def run(name, *options):
        path = tmp_path / "figures.json"
        tiny = ["--rounds", "1", "--size", "tiny", "--device", "cpu"]
        done = run_script(name, *tiny, "--json", path, *options)
        assert done.returncode == 0, done.stderr
        ratios, figures = json.loads(done.stdout.splitlines()[-1]), json.loads(path.read_text())
        assert figures["ratios"] == ratios and figures["machine"]["threads"] == 1
        return ratios, figures

    return run


def test_edit(benchmark):
    ratios, figures = benchmark("benchmark_edit.py")
    assert ratios["edit_speedup_k10"] > 1
    assert figures["checks"]["shared"]["loss"] < 1e-4


@pytest.mark.slow
def test_training(benchmark):
    ratios, figures = benchmark("benchmark_training.py")
    assert 1 < ratios["step_ratio_1000_k10"] < ratios["whole_model_step_ratio_1000_k10"]
    assert ratios["peak_memory_ratio"] > 0 and figures["checks"]["resnet"]["gradient"] < 1e-3


def test_image_drawdown(benchmark):
    ratios, figures = benchmark("benchmark_image_drawdown.py", "--num_images", "40")
    assert ratios["drawdown_speedup_chain3"]["median"] > 1 and ratios["drawdown_speedup_extra"]["median"] > 1
    assert figures["extra"]["check"]["gap"] < 1e-4 and figures["chain3"]["check"]["num_compared"] == 80
