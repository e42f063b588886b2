"""Which words differ between two versions of a sentence, and how many."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

EQUAL, REMOVED, ADDED = "equal", "removed", "added"

# Chinese characters and Japanese kana: not separated by spaces, so each counts as a word.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fa1f"
_MARKS = "!-/:-@\\[-`{-~¡«·»¿\u2010-\u205e\u3000-\u303f\uff01-\uff0f\uff1a-\uff20"
_INNER = rf"[^\s{_MARKS}{_IDEOGRAPHS}]"
# Punctuation is a word of its own at the edge of a word but not within it, as in "3.14"; `&apos;s` is one of Moses.
_WORD = re.compile(rf"&\w+;{_INNER}*|[{_IDEOGRAPHS}]|{_INNER}+(?:[{_MARKS}]+{_INNER}+)*|[{_MARKS}]")


class Segment(NamedTuple):
    """A piece of a sentence: `kind` is "equal", "removed" (of the old one only) or "added" (of the new one only)."""

    kind: str
    text: str


def split_words(text: str) -> list[str]:
    """Words and punctuation marks of a sentence in any script; Chinese and Japanese by character."""
    return _WORD.findall(text)


def mark_words(before: str, after: str) -> tuple[list[Segment], list[Segment]]:
    """The old and the new sentence in pieces, equal ones and changed ones.

    Returns:
        The pieces of each; joined, they give the sentence character for character. Sentences that differ in spaces
        only have no changed piece.
    """
    old, new = list(_WORD.finditer(before)), list(_WORD.finditer(after))
    matcher = SequenceMatcher(None, [word.group() for word in old], [word.group() for word in new], autojunk=False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    return (
        _segments(before, REMOVED, (old[start:end] for _, start, end, _, _ in changes)),
        _segments(after, ADDED, (new[start:end] for _, _, _, start, end in changes)),
    )


def _segments(text: str, kind: str, runs: Iterable[Sequence[re.Match]]) -> list[Segment]:
    segments, position = [], 0
    for run in runs:
        if run:
            start, end = run[0].start(), run[-1].end()
            segments += [Segment(EQUAL, text[position:start]), Segment(kind, text[start:end])]
            position = end
    return [segment for segment in (*segments, Segment(EQUAL, text[position:])) if segment.text]


def word_distance(before: str, after: str) -> float:
    """Word edit distance (insertions, deletions, substitutions) over the words of the longer one: a fraction.

    0 for sentences that differ in spaces only, 1 for sentences that have no word in common.
    """
    old, new = split_words(before), split_words(after)
    longest = max(len(old), len(new), 1)
    while old and new and old[-1] == new[-1]:
        old.pop(), new.pop()
    row = list(range(len(new) + 1))
    for count, word in enumerate(old, start=1):
        diagonal, row[0] = row[0], count
        for column, other in enumerate(new, start=1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (word != other)),
            )
    return row[-1] / longest
