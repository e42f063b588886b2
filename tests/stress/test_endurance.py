from __future__ import annotations

import json

import pytest


@pytest.mark.parametrize("task", ["image", "translation"])
@pytest.mark.slow
def test_nothing_is_left_behind(start_script, tmp_path, task):
    path = tmp_path / "figures.json"
    done = start_script("tests/stress/endurance.py", "--task", task, "--num_edits", 40, "--json", path)
    assert done.returncode in (0, 1), done.stderr  # so few edits say nothing of memory and time
    figures = json.loads(path.read_text())
    assert figures["unchanged"] and figures["ratios"] == json.loads(done.stdout.splitlines()[-1])
    assert figures["config"]["task"] == task and figures["seed"] == 0 and {"versions", "commit"} <= set(figures)
    for key in ("handles", "temporary_files"):
        assert figures["rows"][key]["ratio"] <= 1.0, figures["rows"]
    assert figures["rows"]["memory"]["ratio"] < 1.2 and figures["rows"]["seconds"]["last"] > 0


def test_too_few_edits_are_refused(run_script):
    done = run_script("tests/stress/endurance.py", "--num_edits", 19)
    assert done.returncode == 2 and "--num_edits must be 20 or more" in done.stderr
