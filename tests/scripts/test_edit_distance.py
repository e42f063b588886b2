from __future__ import annotations

import json

import pytest
from datasets import Dataset


@pytest.mark.slow
def test_distance_of_a_measured_drawdown(run_script, translator_folder, corpus, tmp_path):
    drawdown = tmp_path / "drawdown"
    options = ["--model", translator_folder, "--data", corpus, "--num_edits", "4", "--num_alternatives", "3"]
    options += ["--num_beams", "2", "--learning_rate", "3e-3"]
    done = run_script("scripts/bleu_drawdown.py", *options, "--output_dir", drawdown)
    assert done.returncode == 0, done.stderr
    done = run_script(
        "scripts/edit_distance.py", "--runs", drawdown, "--num_bins", "3", "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out/distance.json").read_text())["rows"]
    records = [json.loads(line) for line in (drawdown / "edits.jsonl").read_text().splitlines()]
    moved = [record for record in records if record["num_steps"] > 0]
    assert len(rows) == 3 and all(row["num_edits"] == len(moved) > 0 for row in rows)
    assert Dataset.from_parquet(str(tmp_path / "out/distance.parquet")).num_rows == 3
    assert all(f"{row['changed']:.2%}" in done.stdout for row in rows)


def test_runs_of_the_same_name_are_refused(run_script, tmp_path):
    done = run_script(
        "scripts/edit_distance.py", "--runs", tmp_path / "a/run", tmp_path / "b/run", "--output_dir", tmp_path
    )
    assert done.returncode != 0 and "told apart by the names of their folders" in done.stderr


def test_unfinished_run_is_refused(run_script, tmp_path):
    done = run_script("scripts/edit_distance.py", "--runs", tmp_path)
    assert done.returncode != 0 and "lacks settings.json, edits.jsonl, results.json" in done.stderr
