from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from editable_hf import EditorConfig

SCRIPT = Path(__file__).parents[2] / "scripts/patch_mistakes.py"


@pytest.mark.slow
def test_mistakes_are_patched(trained_marian, tokenizer, sentence_pairs, tmp_path):
    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "out"
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=30)
    trained_marian.float().save_pretrained(model)
    tokenizer.save_pretrained(model)
    EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=40).save_pretrained(model)
    data.mkdir()
    for split, part in (("train", slice(0, 20)), ("valid", slice(20, 30)), ("test", slice(30, 60))):
        for language, sentences in zip(("de", "en"), sentence_pairs, strict=True):
            (data / f"{split}.{language}").write_text("".join(f"{text}\n" for text in sentences[part]))
    options = ["--model", model, "--data", data, "--num_mistakes", "3", "--num_alternatives", "3", "--output_dir", out]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, options), "--save_patches"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "patches.json").read_text())
    assert found["num_mistakes"] == 3 and found["num_sentences"] == 30
    assert found["once"]["verified"] <= found["verified"]["verified"] and found["verified"]["satisfied"] == 1
    assert found["sequence"]["mended"] >= 1 / 3 and found["together"]["num_steps"] > 0
    assert len(list(out.glob("*/patch.json"))) == len(found["sequence"]["bytes"])
