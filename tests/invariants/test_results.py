"""The committed page of results is what the committed files give, and these say what they are of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results"


def test_page_is_made_from_the_files(tmp_path):
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder)
    (folder / "README.md").unlink()
    command = [sys.executable, str(REPOSITORY / "scripts/results_page.py"), "--folder", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert (folder / "README.md").read_text() == (RESULTS / "README.md").read_text(), "run `make results`"
    assert {path.name for path in folder.iterdir()} == {path.name for path in RESULTS.iterdir()}


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_file_says_what_it_is_of(path):
    content = json.loads(path.read_text())
    assert len(content["commit"]) == 12 and content["command"].split()[0].endswith(".py")
    assert (REPOSITORY / content["command"].split()[0]).is_file()
    assert {"config", "seed", "versions", "machine"} <= set(content) and len(content["rows"]) > 1


def test_every_file_is_on_the_page():
    page = (RESULTS / "README.md").read_text()
    for path in RESULTS.glob("*.json"):
        assert json.loads(path.read_text())["command"] in page
    for path in RESULTS.glob("*.png"):
        assert f"]({path.name})" in page
