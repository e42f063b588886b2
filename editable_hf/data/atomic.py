"""Writing a file so that a kill or a full disk leaves either what was there or all of what is new."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes `content` (text as UTF-8) beside `path`, under its name and ".tmp", and then renames it."""
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
