from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time

import pytest

from editable_hf.evaluation.records import read_records
from editable_hf.experiments.stages import Stages

FORK = multiprocessing.get_context("fork")
PAUSE, PARTS = 1e-3, 12


def write_parts(folder):
    """One file for each part, complete once it has its name."""
    for number in range(PARTS):
        path = folder / f"part-{number:02d}.json"
        if not path.exists():
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps([number] * 1000))
            time.sleep(PAUSE)
            partial.rename(path)


def append_lines(folder):
    """One line after another, as edits are measured: each depends on those before it."""
    path = folder / "lines.jsonl"
    records = read_records(path)
    for number in range(len(records), PARTS):
        records.append({"number": number, "sum": sum(record["number"] for record in records), "text": "x" * 20_000})
        with path.open("a") as file:
            file.write(json.dumps(records[-1])[:9_000])  # a kill can leave half a line
            file.flush()
            time.sleep(PAUSE)
            file.write(json.dumps(records[-1])[9_000:] + "\n")


def recipe(folder, built):
    """Three stages, two of which continue what they find; `built` gets the name of each that is worked on."""
    stages = Stages(folder)

    def stage(name, after, fill):
        def build(partial):
            built.append(name)
            fill(partial)
            time.sleep(PAUSE)

        return stages.run(name, {"parts": PARTS}, after, build)

    data = stage("data", [], write_parts)
    edits = stage("edits", [data], append_lines)

    def report(partial):
        last = read_records(edits.folder / "lines.jsonl")[-1]
        (partial / "sum.txt").write_text(str(last["sum"]))

    stage("report", [data, edits], report)


def run_in_folder(folder, log):
    with log.open("a", buffering=1) as file:

        class Names:
            append = staticmethod(lambda name: file.write(f"{name}\n"))

        recipe(folder, Names)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def finished(folder):
    return {path.name: path.stat().st_ino for path in folder.glob("*") if path.name in ("data", "edits", "report")}


@pytest.mark.parametrize("seed", range(3))
def test_result_after_kills_is_that_of_an_undisturbed_run(tmp_path, seed):
    start = time.perf_counter()
    recipe(tmp_path / "whole", [])
    duration = time.perf_counter() - start
    expected = contents(tmp_path / "whole")
    generator, folders, kills = random.Random(seed), [tmp_path / "killed0"], 0
    for _ in range(60):
        folder, log = folders[-1], tmp_path / "built.txt"
        before = finished(folder)
        log.write_text("")
        run = FORK.Process(target=run_in_folder, args=(folder, log))
        run.start()
        run.join(generator.uniform(0, duration / 2) if kills < 10 else 60)
        kills += run.is_alive()
        run.kill()
        run.join()
        assert run.exitcode in (0, -signal.SIGKILL)
        assert finished(folder).items() >= before.items() and not set(log.read_text().split()) & set(before)
        if run.exitcode == 0:
            found = contents(folder)
            assert {**found, ".lock": None} == {**expected, ".lock": None}  # which names the process
            folders.append(tmp_path / f"killed{len(folders)}")
            if kills == 10:
                break
    assert run.exitcode == 0 and kills == 10
