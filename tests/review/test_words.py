"""Marked words, for sentences of all kinds."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editable_hf.review.words import ADDED, EQUAL, REMOVED, mark_words, split_words, word_distance

texts = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["the", "dog", "it's", "&apos;s", "3.14", ",", "我", "愛", " ", "  "]), max_size=9).map(
        " ".join
    ),
)


def levenshtein(old, new):
    @cache
    def rest(i, j):
        if i == len(old) or j == len(new):
            return len(old) - i + len(new) - j
        if old[i] == new[j]:
            return rest(i + 1, j + 1)
        return 1 + min(rest(i + 1, j), rest(i, j + 1), rest(i + 1, j + 1))

    return rest(0, 0)


@given(texts, texts)
def test_pieces_give_the_sentences_and_have_the_equal_words_in_common(before, after):
    old, new = mark_words(before, after)
    assert "".join(text for _, text in old) == before and "".join(text for _, text in new) == after
    assert {kind for kind, _ in old} <= {EQUAL, REMOVED} and {kind for kind, _ in new} <= {EQUAL, ADDED}
    kept = [" ".join(text for kind, text in side if kind == EQUAL) for side in (old, new)]
    assert split_words(kept[0]) == split_words(kept[1])


@given(texts, texts)
def test_distance_is_the_edit_distance_over_the_longer_one(before, after):
    old, new = split_words(before), split_words(after)
    expected = levenshtein(old, new) / max(len(old), len(new), 1)
    assert word_distance(before, after) == pytest.approx(expected)
    assert word_distance(after, before) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.14, isn't it?", ["It's", "3.14", ",", "isn't", "it", "?"]),
        ("it &apos;s born .", ["it", "&apos;s", "born", "."]),
        ("我愛 Python。", ["我", "愛", "Python", "。"]),
        ("मैं हिन्दी", ["मैं", "हिन्दी"]),
        ("«bonjour» – „hallo“", ["«", "bonjour", "»", "–", "„", "hallo", "“"]),
        ("", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


def test_only_spaces_differ():
    old, new = mark_words("a dog .", "a  dog.")
    assert [*old, *new] == [(EQUAL, "a dog ."), (EQUAL, "a  dog.")] and word_distance("a dog .", "a  dog.") == 0
