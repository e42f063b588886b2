from __future__ import annotations

import pytest

from editable_hf.experiments import plots


def test_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    path = tmp_path / "drawdown.png"
    plots.plot_drawdowns({"baseline": [0.1, 2.0, 0.5], "editable": [0.0, 0.3, 0.2]}, path, "a test set")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5_000


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "plots_available", lambda: False)
    with pytest.raises(ImportError, match=r'pip install "editable_hf\[plots\]"'):
        plots.plot_drawdowns({"baseline": [0.1]}, tmp_path / "x.png", "")
