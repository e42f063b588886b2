"""A lock on an output folder, so that two runs do not work in it at the same time."""

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


def claim_folder(folder: str | Path) -> None:
    """Keeps other runs out of a folder until this run's main process ends.

    All processes of a run call this; the main one alone opens the lock, a file that says which process has it. It
    stays behind without a meaning when the process ends, by whatever signal. On a file system without locks this
    warns, and nothing is refused.

    Args:
        folder: One that exists.

    Raises:
        RuntimeError: If another run has it, naming that run's process and machine.
    """
    holder = _lock(Path(folder, LOCK_FILE).absolute()) if launched_processes().is_main_process else None
    (holder,) = broadcast_object_list([holder])
    if holder is not None:
        raise RuntimeError(
            f"Expected the output folder {folder} for this run alone, but {holder} is at work in it; wait until that "
            "has ended, end it, or give another output folder."
        )


def _lock(path: Path) -> str | None:
    """Who has the lock in the way of this process; `None` where it has it itself."""
    file = _held.get(path) or path.open("a+", encoding="utf-8")
    try:
        # Unlike `flock`'s, these locks are not inherited by workers that outlive a killed process, and NFS has them.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        return holder
    except OSError as error:
        logger.warning("%s cannot be locked (%s): do not start a second run in its folder.", path, error)
    _held[path] = file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return None
