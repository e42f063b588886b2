"""Reading text line by line, from plain and compressed files, with errors that name the place."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

COMPRESSIONS = ("", ".gz", ".xz")
MAX_BYTES = 2**32  # WMT's largest files have less


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, plain or compressed by its ending (`.gz`, `.xz`).

    Only a line feed, perhaps after a carriage return, ends a line: corpora contain U+2028, U+0085 and other
    characters at which `str.splitlines` would cut one side of a pair and not the other.

    Args:
        path: An ordinary file (or a link to one).

    Returns:
        The lines without their ends and without a byte order mark.

    Raises:
        FileNotFoundError: If there is no ordinary file at `path`.
        ValueError: If the file is cut short, is not compressed as its ending says, is not UTF-8, or holds more than
            `MAX_BYTES`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected an ordinary file at {path}, but there is none; check the path.")
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opened(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)  # a small file can unpack to more than the memory holds
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"Expected {path} to be a whole {path.suffix} file, but it is cut short or damaged ({error}); "
            "fetch or copy it again."
        ) from error
    if len(data) > MAX_BYTES:
        raise ValueError(
            f"Expected {path} to hold at most {MAX_BYTES:,} bytes of text, but it has more; if it really is a corpus, "
            "cut it into a smaller one."
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"Expected {path} to be UTF-8, but line {line} has the byte 0x{data[error.start]:02x} ({error.reason}); "
            "convert the file, e.g. with `iconv -f latin1 -t utf8`."
        ) from error
    lines = text.removeprefix("\ufeff").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]
