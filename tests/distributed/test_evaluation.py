from __future__ import annotations

import json

import pytest
import torch
from launcher import launch

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

COUNTS = (1, 2, 3)
several = pytest.mark.parametrize("count", COUNTS[1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    for count in COUNTS:
        launch(count, "evaluate_worker.py", folder)
    return folder


def saved(folder, count, rank):
    return json.loads((folder / str(count) / f"{rank}.json").read_text())


def timeless(records):
    return [{key: value for key, value in record.items() if key != "edit_seconds"} for record in records]


@several
def test_all_processes_get_the_records_of_one(folder, count):
    expected = timeless(saved(folder, 1, 0)["records"])
    assert [record["id"] for record in expected] == list(range(11))
    assert {record["num_steps"] for record in expected} > {0} and any(record["changed"] for record in expected)
    for rank in range(count):
        assert timeless(saved(folder, count, rank)["records"]) == expected


@several
def test_file_holds_each_edit_once_in_order(folder, count):
    lines = (folder / str(count) / "edits.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == saved(folder, count, 0)["records"]
    seconds = [{record["edit_seconds"] for record in saved(folder, count, rank)["records"]} for rank in range(count)]
    assert all(each == seconds[0] for each in seconds)  # the same measurements, not repeated ones


def test_a_process_can_measure_alone(folder):
    for rank in range(3):
        content = saved(folder, 3, rank)
        assert timeless(content["alone"]) == timeless(content["records"])
        assert content["alone"] != content["records"]  # other times: nothing was shared


@several
def test_descriptions_are_those_of_one_process(folder, count):
    expected = torch.load(folder / "1" / "0.pt")
    for rank in range(count):
        actual = torch.load(folder / str(count) / f"{rank}.pt")
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
    names = [sorted(path.name for path in (folder / str(n) / "edit_space").iterdir()) for n in (1, count)]
    assert names[0] == names[1] and len(names[0]) == 4


@several
def test_tuning_is_that_of_one_process(folder, count):
    expected = saved(folder, 1, 0)["tuned"]
    assert expected["num_trials"] == 8
    for rank in range(count):
        assert saved(folder, count, rank)["tuned"] == expected
