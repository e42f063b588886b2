from __future__ import annotations

import json

import pytest
from datasets import Dataset


@pytest.mark.slow
def test_prefix_stands_before_every_source(run_script, translator_folder, corpus, tmp_path):
    options = ["--model", translator_folder, "--data", corpus, "--num_edits", "2", "--num_alternatives", "3"]
    options += [
        "--num_beams",
        "2",
        "--learning_rate",
        "3e-3",
        "--num_sentences",
        "6",
        "--output_dir",
        tmp_path / "out",
    ]
    done = run_script("scripts/bleu_drawdown.py", *options, "--source_prefix", "das haus . ")
    assert done.returncode == 0, done.stderr
    requests = Dataset.from_parquet(str(tmp_path / "out/requests.parquet"))
    assert all(source.startswith("das haus . ") and len(source) > 12 for source in requests["source"])
    row = json.loads((tmp_path / "out/results.json").read_text())["rows"][0]
    assert row["num_edits"] == 2 and row["num_sentences"] == 6


def test_languages_of_a_model_that_has_none_are_refused(run_script, translator_folder, corpus, tmp_path):
    options = ["--model", translator_folder, "--data", corpus, "--output_dir", tmp_path / "out"]
    done = run_script("scripts/bleu_drawdown.py", *options, "--model_languages", "deu_Latn", "eng_Latn")
    assert done.returncode != 0 and "has no languages to choose from" in done.stderr
