"""Values of JSON files from elsewhere, checked before anything is made of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Expected(NamedTuple):
    """What a value must be: in words, for the message, and as a test."""

    words: str
    holds: Callable[[Any], bool]

    def or_none(self) -> Expected:
        return Expected(f"{self.words}, or null", lambda value: value is None or self.holds(value))


def _is_number(value: Any) -> bool:
    # A whole number can be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _are_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(each, str) for each in value.values())


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(each, str) for each in value)


TEXT = Expected("a string", lambda value: isinstance(value, str))
TRUTH = Expected("true or false", lambda value: isinstance(value, bool))
COUNT = Expected("0 or a higher whole number", lambda value: type(value) is int and value >= 0)
NUMBER = Expected("a finite number", _is_number)
NUMBERS = Expected("finite numbers by name", _are_numbers)
TEXTS = Expected("strings by name", _are_texts)
NAMES = Expected("a list of names", _are_names)
OBJECT = Expected("an object", lambda value: isinstance(value, dict))


def parse_json(data: str | bytes) -> Any:
    """What a JSON text holds, if it can be written again.

    Raises:
        ValueError: For what is no JSON: `NaN` and `Infinity`, half of a surrogate pair, or nesting without end, too.
    """
    try:
        content = json.loads(data, parse_constant=_refuse)
        json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")


def read_object(path: Path, again: str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Args:
        path: The file, UTF-8.
        again: What to do about a damaged file: "download or save the checkpoint again".

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds something else.
    """
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {again}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}; {again}.")
    return content


def check_fields(content: Mapping[str, Any], expected: Mapping[str, Expected], where: str, again: str) -> None:
    """Raises `ValueError` for the first value of `content` that is not what is expected under its name."""
    for name, value in content.items():
        if name in expected and not expected[name].holds(value):
            raise ValueError(
                f"{where}: expected `{name}` to be {expected[name].words}, got {str(value)[:60]!r}; {again}."
            )
