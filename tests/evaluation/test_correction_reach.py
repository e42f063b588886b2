from __future__ import annotations

import pytest

from editable_hf.data.embedded import embedded_requests
from editable_hf.evaluation.correction_reach import correction_reach, related_sentences, summarize_reach


def pairs(*names):
    return [{"source": name, "target": name.upper()} for name in names]


@pytest.fixture
def request_row():
    related = {"paraphrases": pairs("b"), "neighbors": pairs("c", "d", "e", "f"), "unrelated": pairs("x", "y")}
    return {"source": "a", "target": "A", **related}


def test_shares_are_counted(request_row):
    before = dict.fromkeys("abdefx", "old") | {"c": "C", "y": "Y"}
    after = {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E", "f": "old", "x": "old", "y": "changed"}
    assert correction_reach(request_row, before, after) == {
        "source": "a",
        "holds": True,
        "paraphrases": 1.0,
        "paraphrases_before": 0.0,
        "neighbors": 0.75,
        "neighbors_before": 0.25,
        "unrelated": 0.5,  # stays as it was, right or wrong
    }
    nothing = correction_reach(request_row, before, before)
    assert not nothing["holds"] and nothing["unrelated"] == 1 and nothing["neighbors"] == 0.25


def test_means_over_corrections(request_row):
    before = dict.fromkeys("abcdefxy", "old")
    records = [correction_reach(request_row, before, {**before, "a": target}) for target in ("A", "A", "B", "A")]
    row = summarize_reach("r", [{**record, "fix_seconds": 2.0} for record in records], ["fix_seconds"])
    assert (row["name"], row["holds"], row["paraphrases"], row["unrelated"]) == ("r", 0.75, 0, 1)
    assert (row["num_edits"], row["fix_seconds"], row["intervals"]["fix_seconds"]) == (4, 2.0, [2.0, 2.0])
    low, high = row["intervals"]["holds"]
    assert low < 0.75 < high


def test_sentences_of_an_embedded_request():
    request = embedded_requests(3)[2]
    found = related_sentences(request)
    assert found[0] == request["source"] and len(found) == len(set(found))
    assert len(found) == 1 + sum(len(request[name]) for name in ("paraphrases", "neighbors", "unrelated"))
