from __future__ import annotations

import pytest

from editable_hf.data.requests import read_corrections
from editable_hf.data.sentences import read_sentences


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "eins\n\nzwei\n", (["eins", "zwei"], None)),
        ("a.tsv", "source\ttarget\neins\tone\n", (["eins"], ["one"])),
        (
            "a.jsonl",
            '{"source": "eins", "target": "one", "note": "ä\u2028"}\n\n{"prompt": "zwei", "target": " two"}\n',
            (["eins", "zwei"], ["one", " two"]),
        ),
    ],
)
def test_sentences(tmp_path, name, text, expected):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert tuple(read_sentences(path)) == expected


GOOD = '{"source": "der hund .", "target": "the dog ."}\n\n'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "eins", "Expected a file of sentences to end in .jsonl"),
        ("a.txt", "\n", "Expected at least one sentence"),
        ("a.tsv", "a\tb\tc\n", "line 1: expected a source, or a source, a tab and a target, got 'a"),
        ("a.jsonl", GOOD + "{", "a.jsonl, line 3: expected an object"),
        ("a.jsonl", "[" * 100_000, "line 1: expected"),
        ("a.jsonl", GOOD + '["der hund .", "the dog ."]', "line 3: expected"),
        ("a.jsonl", GOOD + '"source target"', "line 3: expected"),
        ("a.jsonl", GOOD + '{"target": "x"}', "line 3: expected"),
        ("a.jsonl", GOOD + '{"prompt": "a", "source": "a", "target": "b"}', "line 3: expected"),
        ("a.jsonl", GOOD + '{"source": 1, "target": "the dog ."}', "line 3: expected"),
        ("a.jsonl", GOOD + '{"source": " ", "target": "the dog ."}', "line 3: expected"),
        ("a.jsonl", GOOD + '{"source": "der hund .", "target": 5}', "line 3: expected"),
        ("a.jsonl", GOOD + '{"source": "der hund .", "target": null}', "line 3 has no target, unlike those before"),
        ("a.tsv", "a\nb\tc\n", "line 2 has a target, unlike those before"),
    ],
)
def test_mistake_is_named_with_its_line(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_sentences(path)


def test_corrections_need_targets(tmp_path):
    (tmp_path / "a.txt").write_text("eins\n")
    with pytest.raises(ValueError, match=r'a.txt: expected a "target" for each source'):
        read_corrections(tmp_path / "a.txt")
