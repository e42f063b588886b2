from __future__ import annotations

import json

import pytest

from editable_hf import EditorConfig


@pytest.mark.slow
def test_mistakes_are_patched(run_script, translator_folder, corpus, tmp_path):
    config, out = EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=40), tmp_path / "out"
    config.save_pretrained(translator_folder)
    options = ["--model", translator_folder, "--data", corpus, "--num_mistakes", "3", "--num_alternatives", "3"]
    done = run_script("scripts/patch_mistakes.py", *options, "--output_dir", out, "--save_patches")
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "patches.json").read_text())
    assert found["num_mistakes"] == 3 and found["num_sentences"] == 30
    assert found["once"]["verified"] <= found["verified"]["verified"] and found["verified"]["satisfied"] == 1
    assert found["sequence"]["mended"] >= 1 / 3 and found["together"]["num_steps"] > 0
    assert len(list(out.glob("*/patch.json"))) == len(found["sequence"]["bytes"])
