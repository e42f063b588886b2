from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def run_script():
    """Runs a script of this repository on one thread, in a process of its own."""

    def run(name, *options):
        return subprocess.run(
            [sys.executable, str(SCRIPTS / name), *map(str, options)],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return run


@pytest.fixture
def corpus(sentence_pairs, tmp_path):
    """A folder in fairseq's layout: 20 pairs to train with, 10 to validate, 30 to test."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, part in (("train", slice(0, 20)), ("valid", slice(20, 30)), ("test", slice(30, 60))):
        for language, sentences in zip(("de", "en"), sentence_pairs, strict=True):
            (folder / f"{split}.{language}").write_text("".join(f"{text}\n" for text in sentences[part]))
    return folder
