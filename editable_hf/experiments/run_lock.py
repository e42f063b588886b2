"""Locks on files, so that two runs do not work in one folder at the same time."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import TextIO

from accelerate.utils import broadcast_object_list

from editable_hf.launch import launched_processes

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"

# Locks belong to the process: to close another handle on such a file would release it.
_held: dict[Path, TextIO] = {}


def claim_folder(folder: str | Path, shared: bool = False) -> None:
    """Keeps other runs out of `folder` for as long as this one lives; see [`claim`]."""
    claim(Path(folder, LOCK_FILE), f"the output folder {folder}", shared)


def claim(path: Path, what: str, shared: bool = False) -> None:
    """Locks a file for this run, until its main process ends or calls [`release`]; again changes how it is held.

    All processes of a run call this; the main one alone opens the file, which stays behind without a meaning when the
    process ends, by whatever signal. On a file system without locks this warns, and nothing is refused.

    Args:
        path: Of the lock, in a folder that exists; made if missing. It says which process has it.
        what: What it stands for, for messages.
        shared: Other runs may have it too, if they also ask for `shared`.

    Raises:
        RuntimeError: If another run has it, naming that run's process and machine.
    """
    holder = _lock(path.absolute(), what, shared) if launched_processes().is_main_process else None
    (holder,) = broadcast_object_list([holder])
    if holder is not None:
        raise RuntimeError(
            f"Expected {what} for this run alone, but {holder} is at work in it; wait until that has ended, end it, "
            "or give another output folder."
        )


def release(path: Path) -> None:
    """Gives back what this run [`claim`]ed."""
    file = _held.pop(path.absolute(), None)
    if file is not None:
        file.close()


def _lock(path: Path, what: str, shared: bool) -> str | None:
    """Who has the lock in the way of this process; `None` where it has it itself."""
    file = _held.get(path) or path.open("a+", encoding="utf-8")
    try:
        # Unlike `flock`'s, these locks are not inherited by workers that outlive a killed process, and NFS has them.
        fcntl.lockf(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "another process"
        if path not in _held:
            file.close()
        return holder
    except OSError as error:
        logger.warning("%s cannot be locked (%s): do not start a second run in it.", what, error)
    _held[path] = file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return None
