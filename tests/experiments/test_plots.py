from __future__ import annotations

import pytest
import torch

from editable_hf.experiments import plots


@pytest.fixture
def png(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    path = tmp_path / "picture.png"
    yield path
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5_000


def test_drawdowns_of_more_rows_than_colors(png):
    rows = {f"row {number}": [0.001 * number, 0.2, 0.0] for number in range(len(plots.COLORS) + 2)}
    plots.plot_drawdowns(rows, png, "a test set", "BLEU")


def test_drawdowns_that_are_all_zero(png):
    plots.plot_drawdowns({"no edit moved": [0.0, 0.0]}, png, "a test set", "BLEU")


@pytest.mark.parametrize("num_classes", [6, 1_000])
def test_ranks(png, num_classes):
    plots.plot_ranks(torch.arange(num_classes).flip(0), png, "examples")


@pytest.mark.parametrize("runs", [1, 3])
def test_sequences(png, runs):
    rates = torch.rand(runs, 5, generator=torch.Generator().manual_seed(0)).double()
    plots.plot_sequences({"baseline": rates, "match ranks": rates / 2}, png, "a test set")


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("editable_hf.versions.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "editable_hf\[plots\]"'):
        plots.plot_drawdowns({"baseline": [0.1]}, tmp_path / "x.png", "", "BLEU")
