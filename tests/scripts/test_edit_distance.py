from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script, *options):
    return subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, options)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_distance_of_a_measured_drawdown(trained_marian, tokenizer, sentence_pairs, tmp_path):
    model, data, drawdown = tmp_path / "model", tmp_path / "data", tmp_path / "drawdown"
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=30)
    trained_marian.float().save_pretrained(model)
    tokenizer.save_pretrained(model)
    data.mkdir()
    for split, part in (("train", slice(0, 20)), ("valid", slice(20, 30)), ("test", slice(30, 60))):
        for language, sentences in zip(("de", "en"), sentence_pairs, strict=True):
            (data / f"{split}.{language}").write_text("".join(f"{text}\n" for text in sentences[part]))
    options = ["--model", model, "--data", data, "--num_edits", "4", "--num_alternatives", "3", "--num_beams", "2"]
    done = run("bleu_drawdown.py", *options, "--learning_rate", "3e-3", "--output_dir", drawdown)
    assert done.returncode == 0, done.stderr
    done = run("edit_distance.py", "--runs", drawdown, "--num_bins", "3", "--output_dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out/distance.json").read_text())["rows"]
    records = [json.loads(line) for line in (drawdown / "edits.jsonl").read_text().splitlines()]
    moved = [record for record in records if record["num_steps"] > 0]
    assert len(rows) == 3 and all(row["num_edits"] == len(moved) > 0 for row in rows)
    assert Dataset.from_parquet(str(tmp_path / "out/distance.parquet")).num_rows == 3
    assert all(f"{row['changed']:.2%}" in done.stdout for row in rows)


def test_unfinished_run_is_refused(tmp_path):
    done = run("edit_distance.py", "--runs", tmp_path)
    assert done.returncode != 0 and "lacks settings.json, edits.jsonl, results.json" in done.stderr
