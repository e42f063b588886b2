from __future__ import annotations

import json
import shutil

import pytest
from datasets import load_from_disk
from launcher import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def test_requests_and_evaluation_are_those_of_one_process(tmp_path):
    out = tmp_path / "out"
    launch(1, "recipe_worker.py", out)
    for name in ("requests", "evaluation"):
        shutil.move(out / name, tmp_path / name)
    output = launch(2, "recipe_worker.py", out)
    assert output.count("already there, unchanged") == 5  # said once, not by each process
    assert output.count("] starts") == 2 and output.count("One wrong translation") == 1

    for split in ("train", "test"):
        alone, shared = (load_from_disk(folder / "requests" / split) for folder in (tmp_path, out))
        assert alone.to_list() == shared.to_list()
        assert len(list((out / "requests").glob(f"{split}-*.parquet"))) > 1  # there was something to share
    files = sorted(path.name for path in (out / "evaluation").glob("edits-*.jsonl"))
    assert files == sorted(path.name for path in (tmp_path / "evaluation").glob("edits-*.jsonl")) and files
    for name in files:
        alone, shared = (read(folder / "evaluation" / name) for folder in (tmp_path, out))
        assert alone == shared
    alone, shared = (json.loads((folder / "evaluation/results.json").read_text()) for folder in (tmp_path, out))
    for one, other in zip(alone["rows"], shared["rows"], strict=True):
        for row in (one, other):
            del row["edit_seconds"], row["intervals"]["edit_seconds"]
        assert one == other


def read(path):
    records = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "edit_seconds"} for record in records]
