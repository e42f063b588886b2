"""How fuzz_readers.py damages files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

ODD_BYTES = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"\n\n",
    b"<!DOCTYPE x [<!ENTITY a 'b'>]>",
    b"../",
    b'"',
    b"{" * 2000,
    b"9" * 5000,
]
ODD_VALUES = [
    None,
    True,
    -1,
    10**400,
    1e308,
    float("nan"),
    "",
    "x" * 10_000,
    "../../etc",
    "\ud800",
    2**63,
    [-1, 2**62],
    [],
    {},
    [[]],
    {"a": {"b": 1}},
]


def damaged(original: bytes) -> st.SearchStrategy[bytes]:
    """A file with a few bits flipped, pieces cut out, put in or repeated."""

    @st.composite
    def draw_one(draw: Callable) -> bytes:
        data = bytearray(original)
        for _ in range(draw(st.integers(1, 4))):
            at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 64))
            kind = draw(st.sampled_from(["flip", "cut", "put", "repeat", "end"]))
            if kind == "flip" and at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            elif kind == "cut":
                del data[at : at + length]
            elif kind == "put":
                data[at:at] = draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=32))
            elif kind == "repeat":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
            else:
                del data[at:]
        return bytes(data)

    return draw_one()


def damaged_json(original: bytes) -> st.SearchStrategy[bytes]:
    """A JSON file with a value of its tree replaced, removed or renamed, or damaged as any other file."""
    places = list(_places(json.loads(original)))

    @st.composite
    def draw_one(draw: Callable) -> bytes:
        content = json.loads(original)
        parent, key = content, None
        for key in draw(st.sampled_from(places))[:-1]:
            parent = parent[key]
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = draw(st.sampled_from(keys))
        kind = draw(st.sampled_from(["replace", "remove", "rename", "nest"]))
        if kind == "replace":
            parent[key] = draw(st.sampled_from(ODD_VALUES) | st.floats() | st.text(max_size=20))
        elif kind == "nest":
            return json.dumps(content).replace(json.dumps(key), "[" * 100_000, 1).encode()
        else:
            value = parent.pop(key)
            if kind == "rename" and isinstance(parent, dict):
                parent[draw(st.text(max_size=10))] = value
        return json.dumps(content).encode()

    return draw_one() | damaged(original)


def _places(tree: Any, path: tuple = ()) -> Any:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield (*path, key)
        if isinstance(value, dict | list) and value:
            yield from _places(value, (*path, key))
