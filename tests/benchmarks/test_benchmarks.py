from __future__ import annotations

import json

import pytest


@pytest.fixture
def benchmark(start_script, tmp_path):
    """The ratios that a benchmark prints, and all figures that it writes."""

    def run(name, *options):
        path = tmp_path / "figures.json"
        done = start_script(name, "--rounds", "1", "--device", "cpu", "--json", path, *options)
        assert done.returncode == 0, done.stderr
        ratios, figures = json.loads(done.stdout.splitlines()[-1]), json.loads(path.read_text())
        assert figures["ratios"] == ratios and figures["machine"]["threads"] == 1
        # What `write_results` writes beside the rows of a recipe.
        assert figures["config"]["json"] == str(path) and figures["config"]["rounds"] == 1
        assert figures["seed"] == 0 and {"versions", "commit"} <= set(figures)
        return ratios, figures

    return run


@pytest.mark.slow
def test_edit(benchmark):
    ratios, figures = benchmark("benchmarks/benchmark_edit.py", "--size", "tiny")
    assert ratios["edit_speedup_k10"] > 1
    assert figures["checks"]["shared"]["loss"] < 1e-4


@pytest.mark.slow
def test_training(benchmark):
    ratios, figures = benchmark("benchmarks/benchmark_training.py", "--size", "tiny")
    assert 1 < ratios["step_ratio_1000_k10"] < ratios["whole_model_step_ratio_1000_k10"]
    assert ratios["peak_memory_ratio"] > 0 and figures["checks"]["resnet"]["gradient"] < 1e-3


@pytest.mark.slow
def test_image_drawdown(benchmark):
    ratios, figures = benchmark("benchmarks/benchmark_image_drawdown.py", "--size", "tiny", "--num_images", "40")
    assert ratios["drawdown_speedup_chain3"]["median"] > 1 and ratios["drawdown_speedup_extra"]["median"] > 1
    assert figures["extra"]["check"]["gap"] < 1e-4 and figures["chain3"]["check"]["num_compared"] == 80
