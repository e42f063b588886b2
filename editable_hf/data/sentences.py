"""Sentences from a user's file, with or without what they should become: corrections, and what must not break."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from editable_hf.data.json_fields import parse_json
from editable_hf.data.text_lines import COMPRESSIONS, read_lines


class Sentences(NamedTuple):
    """Sources as the model sees them, and how they should be translated or continued, if that is known."""

    sources: list[str]
    references: list[str] | None


def _of_json(line: str) -> tuple[str, str | None]:
    row = parse_json(line)
    (kind,) = {"source", "prompt"} & row.keys()
    return row[kind], row.get("target")


def _of_columns(line: str) -> tuple[str, str | None]:
    source, *targets = line.split("\t")
    (target,) = targets or [None]
    return source, target


_LINES = {
    ".jsonl": (_of_json, 'an object with a text "source" (or "prompt") and perhaps one as "target"'),
    ".tsv": (_of_columns, "a source, or a source, a tab and a target"),
    ".txt": (lambda line: (line, None), "a source"),
}


def read_sentences(path: str | os.PathLike) -> Sentences:
    """Reads sentences, with or without references, from a `.jsonl`, `.tsv` or `.txt` file; blank lines do not count.

    Args:
        path: A `.jsonl` file with an object on each line that has a `source` (or `prompt`) and perhaps a `target`
            (other keys are ignored); a `.tsv` file of sources, or of sources and targets, where a first line of these
            two words is a heading; or a `.txt` file with a source on each line. UTF-8, perhaps with `.gz` or `.xz`
            behind its ending.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the ending is another one, or a line is not as described; names the line.
    """
    path, name = Path(path), Path(path).name
    for ending in COMPRESSIONS[1:]:
        name = name.removesuffix(ending)
    if Path(name).suffix not in _LINES:
        formats = ", ".join(f"{ending} ({words} on each line)" for ending, (_, words) in _LINES.items())
        raise ValueError(f"Expected a file of sentences to end in {formats}, but got {path}; rename or convert it.")
    parse, expected = _LINES[Path(name).suffix]
    lines = [(number, line) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    if parse is _of_columns and lines and lines[0][1].lower().split("\t") in (["source"], ["source", "target"]):
        del lines[0]
    pairs = []
    for number, line in lines:
        try:
            source, target = parse(line)
            if not source.strip() or not isinstance(target, str | None):
                raise ValueError("a source without a word, or a target that is no text")
        except (ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: expected {expected}, got {line[:60]!r}; mend or remove that line."
            ) from error
        if pairs and (target is None) != (pairs[0][1] is None):
            state = "no target" if target is None else "a target"
            raise ValueError(f"{path}, line {number} has {state}, unlike those before; complete or drop the targets.")
        pairs.append((source, target))
    if not pairs:
        raise ValueError(f"Expected at least one sentence in {path}, but there is none; give a file with some.")
    sources, targets = map(list, zip(*pairs, strict=True))
    return Sentences(sources, None if targets[0] is None else targets)
