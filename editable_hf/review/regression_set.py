"""Sentences that a patch must not break, from a file of the user's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from editable_hf.data.json_fields import parse_json
from editable_hf.data.text_lines import COMPRESSIONS, read_lines

_FORMATS = (
    '.jsonl (an object with "source" and perhaps "target" on each line), .tsv (source, or source, tab and target) or '
    ".txt (a source on each line)"
)


class RegressionSet(NamedTuple):
    """Sentences as the model sees them, and how they should be translated, if that is known."""

    sources: list[str]
    references: list[str] | None


def read_regression_set(path: str | os.PathLike) -> RegressionSet:
    """Reads sentences, with or without references, from a `.jsonl`, `.tsv` or `.txt` file.

    Args:
        path: A `.jsonl` file with an object on each line that has a `source` and perhaps a `target` (other keys are
            ignored); a `.tsv` file of sources, or of sources and targets, where a first line of these two words is a
            heading; or a `.txt` file with a source on each line. UTF-8, perhaps with `.gz` or `.xz` behind its ending.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the ending is another one, or a line is not as described; names the line.
    """
    path = Path(path)
    name = path.name
    for ending in COMPRESSIONS[1:]:
        name = name.removesuffix(ending)
    parsers = {".jsonl": _parse_json, ".tsv": _parse_columns, ".txt": lambda line: (line, None)}
    parse = parsers.get(Path(name).suffix)
    if parse is None:
        raise ValueError(f"Expected a regression set to end in {_FORMATS}, but got {path}; rename or convert it.")
    lines = list(enumerate(read_lines(path), start=1))
    if parse is _parse_columns and lines and lines[0][1].lower().split("\t") in (["source"], ["source", "target"]):
        del lines[0]
    pairs = [_parse_line(path, number, line, parse) for number, line in lines]
    if not pairs:
        raise ValueError(f"Expected at least one sentence in {path}, but there is none; give a file with some.")
    with_target = [target is not None for _, target in pairs]
    if any(with_target) and not all(with_target):
        number = lines[with_target.index(not with_target[0])][0]
        raise ValueError(
            f"Expected a target for all lines of {path} or for none, but line {number} has "
            f"{'one' if not with_target[0] else 'none'} unlike the lines before it; complete or drop the targets."
        )
    sources, targets = zip(*pairs, strict=True)
    return RegressionSet(list(sources), list(targets) if with_target[0] else None)


def _parse_line(path: Path, number: int, line: str, parse) -> tuple[str, str | None]:
    try:
        source, target = parse(line)
        if not source.strip():
            raise _LineError("a source sentence", "nothing but spaces" if line else "an empty line")
    except _LineError as error:
        expected, got = error.args
        raise ValueError(
            f"Expected {expected} in line {number} of {path}, but got {got}; mend or remove that line."
        ) from error
    return source, target


def _parse_json(line: str) -> tuple[str, str | None]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise _LineError("a JSON object", f"{_shortened(line)} ({error})") from error
    texts = [row[kind] for kind in ("source", "prompt") if kind in row] if isinstance(row, dict) else []
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise _LineError('a JSON object with the text "source" (or "prompt")', _shortened(line))
    (source,) = texts
    target = row.get("target")
    if target is not None and not isinstance(target, str):
        raise _LineError('a text as "target"', _shortened(json.dumps(target)))
    return source, target


def _parse_columns(line: str) -> tuple[str, str | None]:
    source, *targets = line.split("\t")
    if len(targets) > 1:
        raise _LineError("a source, or a source and a target", f"{1 + len(targets)} columns")
    return source, targets[0] if targets else None


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


class _LineError(Exception):
    """What was expected in a line, and what is there."""
