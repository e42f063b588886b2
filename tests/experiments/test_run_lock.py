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


def hold(ready, folder):
    Stages(folder)
    ready.set()
    time.sleep(60)


def hold_with_worker(ready, folder, workers):
    claim_folder(folder)
    worker = FORK.Process(target=time.sleep, args=(60,))
    worker.start()
    workers.put(worker.pid)
    ready.set()
    time.sleep(60)


def write(text):
    return lambda folder: (folder / "result.txt").write_text(text)


def test_second_run_is_refused_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "out"
    with process(hold, folder) as first:
        before = sorted(folder.rglob("*"))
        who = f"process {first.pid} on {socket.gethostname()} is at work in it"
        with pytest.raises(RuntimeError, match=f"Expected the output folder .*/out for this run alone, but {who}"):
            Stages(folder)
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


def test_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    stage = Stages(tmp_path).run("data", {}, [], write("made"))
    assert (stage.folder / "result.txt").read_text() == "made"
    assert "cannot be locked ([Errno" in caplog.text and "do not start a second run in its folder" in caplog.text
