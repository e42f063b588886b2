"""Reading text line by line, from plain and compressed files, with errors that name the place."""

from __future__ import annotations

import gzip
import lzma
import zlib
from pathlib import Path

COMPRESSIONS = ("", ".gz", ".xz")


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, plain or compressed by its ending (`.gz`, `.xz`).

    Args:
        path: An ordinary file (or a link to one).

    Returns:
        The lines without their ends, see [`decode_lines`].

    Raises:
        FileNotFoundError: If there is no ordinary file at `path`.
        ValueError: If the file is cut short, is not compressed as its ending says, or is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"Expected an ordinary file at {path}, but there is none; check the path.")
    try:
        if path.suffix == ".gz":
            data = gzip.decompress(path.read_bytes())
        elif path.suffix == ".xz":
            data = _decompress_xz(path.read_bytes())
        else:
            data = path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"Expected {path} to be a whole {path.suffix} file, but it is cut short or damaged ({error}); "
            "fetch or copy it again."
        ) from error
    return decode_lines(data, str(path))


def decode_lines(data: bytes, name: str) -> list[str]:
    """Lines of UTF-8 `data`, without their ends and without a byte order mark.

    Only a line feed, perhaps after a carriage return, ends a line: corpora contain U+2028, U+0085 and other
    characters at which `str.splitlines` would cut one side of a pair and not the other.

    Args:
        data: Content of a file.
        name: What to call the file in an error.

    Raises:
        ValueError: If `data` is not UTF-8; names the line.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"Expected {name} to be UTF-8, but line {line} has the byte 0x{data[error.start]:02x} ({error.reason}); "
            "convert the file, e.g. with `iconv -f latin1 -t utf8`."
        ) from error
    lines = text.removeprefix("\ufeff").split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _decompress_xz(data: bytes) -> bytes:
    # lzma.decompress returns what it has got when a stream lacks its end; the decompressor knows whether it came.
    decompressor = lzma.LZMADecompressor()
    text = decompressor.decompress(data)
    if not decompressor.eof:
        raise EOFError("the end of the stream is missing")
    if decompressor.unused_data.strip(b"\0"):
        return text + _decompress_xz(decompressor.unused_data)
    return text
