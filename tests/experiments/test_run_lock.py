from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import time
from contextlib import contextmanager

import pytest

from editable_hf.experiments.run_lock import claim_folder
from editable_hf.experiments.stages import Stages

FORK = multiprocessing.get_context("fork")  # another process within milliseconds, with all imports done


@contextmanager
def process(function, *arguments):
    """Runs a function in another process, which it tells that it is ready; SIGKILL in the end."""
    ready = FORK.Event()
    other = FORK.Process(target=function, args=(ready, *arguments), daemon=False)
    other.start()
    try:
        assert ready.wait(30)
        yield other
    finally:
        other.kill()
        other.join()


def hold(ready, folder, shared=False):
    Stages(folder, shared)
    ready.set()
    time.sleep(60)


def hold_with_worker(ready, folder, workers):
    claim_folder(folder)
    worker = FORK.Process(target=time.sleep, args=(60,))
    worker.start()
    workers.put(worker.pid)
    ready.set()
    time.sleep(60)


def build_for_ever(ready, folder):
    stages = Stages(folder, shared=True)
    stages.run("model", {}, [], lambda partial: (ready.set(), time.sleep(60)))


def write(text):
    return lambda folder: (folder / "result.txt").write_text(text)


def test_second_run_is_refused_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "out"
    with process(hold, folder) as first:
        before = sorted(folder.rglob("*"))
        who = f"process {first.pid} on {socket.gethostname()} is at work in it"
        with pytest.raises(RuntimeError, match=f"Expected the output folder .*/out for this run alone, but {who}"):
            Stages(folder)
        with pytest.raises(RuntimeError, match=who):
            Stages(folder, shared=True)
        assert sorted(folder.rglob("*")) == before
    stages = Stages(folder)
    stages.run("data", {}, [], write("mine"))
    assert (folder / "data/result.txt").read_text() == "mine"
    with process(lambda ready: ready.set()):  # a process that is started meanwhile does not release it when it ends
        pass
    other = FORK.Process(target=hold, args=(FORK.Event(), folder))
    other.start()
    other.join(30)
    assert other.exitcode == 1


def test_worker_that_outlives_a_killed_run_does_not_hold_the_folder(tmp_path):
    workers = FORK.Queue()
    with process(hold_with_worker, tmp_path, workers) as first:
        worker = workers.get(timeout=30)
        with pytest.raises(RuntimeError, match=f"process {first.pid} on"):
            claim_folder(tmp_path)
        first.kill()
        first.join()
        try:
            claim_folder(tmp_path)
            with open(f"/proc/{worker}/stat") as file:
                assert file.read().split()[2] == "S"  # alive and asleep
        finally:
            os.kill(worker, signal.SIGKILL)


def test_runs_that_share_a_folder_work_on_different_stages(tmp_path):
    stages = Stages(tmp_path, shared=True)
    with process(build_for_ever, tmp_path) as other:
        data = stages.run("data", {"source": "a"}, [], write("a"))
        with pytest.raises(RuntimeError, match=rf"Expected model in {tmp_path} for this run alone, but process "):
            stages.run("model", {}, [], write("never"))
        with pytest.raises(RuntimeError, match=f"process {other.pid} on"), stages.claimed("model"):
            pytest.fail("claimed")
        # A finished stage may be read by the other run: it stays where it is.
        with pytest.raises(RuntimeError, match="Expected the output folder"):
            stages.run("data", {"source": "b"}, [], write("b"))
        with pytest.raises(RuntimeError, match="Expected the output folder"):
            Stages(tmp_path)
        assert stages.look("data", {"source": "a"}, []) == (data, True)
        assert (data.folder / "result.txt").read_text() == "a"
    assert (tmp_path / "model.partial").is_dir()
    model = stages.run("model", {}, [], write("ours"))
    assert (model.folder / "result.txt").read_text() == "ours"
    assert stages.run("data", {"source": "b"}, [], write("b")).folder == data.folder
    assert (tmp_path / "data.old1/result.txt").read_text() == "a"
    with process(hold, tmp_path, True):  # still shared after the move
        assert stages.run("model", {}, [], write("never")) == model


def test_stage_that_another_run_finished_meanwhile_is_not_built(tmp_path, monkeypatch, capsys):
    stages = Stages(tmp_path, shared=True)

    @contextmanager
    def finished_before_the_claim(name):
        monkeypatch.undo()
        Stages(tmp_path, shared=True).run(name, {}, [], write("theirs"))
        yield

    monkeypatch.setattr(stages, "claimed", finished_before_the_claim)
    stage = stages.run("model", {}, [], write("ours"))
    assert (stage.folder / "result.txt").read_text() == "theirs"
    assert capsys.readouterr().out.splitlines()[-1] == f"[model] already there, unchanged: {stage.folder}"


def test_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    stage = Stages(tmp_path).run("data", {}, [], write("made"))
    assert (stage.folder / "result.txt").read_text() == "made"
    assert "cannot be locked ([Errno" in caplog.text and "do not start a second run in it" in caplog.text
