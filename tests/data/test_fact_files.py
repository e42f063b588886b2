"""Public forms of edits of facts, by made-up rows."""

import gzip
import json
import lzma

import pytest

from editable_hf.data.fact_files import read_fact_requests
from editable_hf.data.facts import fact_requests, load_facts

ROME = {
    "case_id": 7,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Nolish", "id": "Q1"},
        "target_true": {"str": "Tivese", "id": "Q2"},
        "subject": "Toban Boter",
    },
    "paraphrase_prompts": ["Snow fell. Toban Boter spoke the language", "Toban Boter grew up with"],
    "neighborhood_prompts": ["Vesis Sterac is a native speaker of", "At home, Gena Farvurn spoke"],
    "attribute_prompts": ["Jipel Nilidge is a native speaker of"],
    "generation_prompts": ["Toban Boter's mother tongue is"],
}
WIKI_BIG_EDIT = {
    "prompt": "In which city did Toban Boter die?",
    "target_new": "Bovar",
    "subject": "Toban Boter",
    "rephrase_prompt": "Where did Toban Boter die?",
    "locality_prompt": "Where did Vesis Sterac die?",
    "locality_ground_truth": "Zepek",
}
EASY_EDIT = {"case_id": 9, **WIKI_BIG_EDIT, "ground_truth": "Lumum"}
MEND = {
    "subject": "Toban Boter",
    "src": "What did Toban Boter play?",
    "pred": "oboe",
    "rephrase": "Which instrument was that of Toban Boter?",
    "alt": "harp",
    "answers": ["drum", "snare drum"],
    "loc": "nq question: how long is the river at bovar",
    "loc_ans": "90 miles",
    "cond": "oboe >> harp || What did Toban Boter play?",
}


def written(folder, *rows):
    file = folder / "facts.json"
    file.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    return file


def test_rome(tmp_path):
    (row,) = read_fact_requests(written(tmp_path, ROME))
    assert row == {
        "id": 7,
        "subject": "Toban Boter",
        "prompt": "The mother tongue of Toban Boter is",
        "target": " Nolish",
        "old": " Tivese",
        "paraphrases": ROME["paraphrase_prompts"],
        "neighbors": [{"prompt": prompt, "answer": " Tivese"} for prompt in ROME["neighborhood_prompts"]],
        "portability": [],
    }


def test_easy_edit_and_wiki_big_edit(tmp_path):
    usual = {
        "subject": "Toban Boter",
        "prompt": "In which city did Toban Boter die?",
        "target": " Bovar",
        "paraphrases": ["Where did Toban Boter die?"],
        "neighbors": [{"prompt": "Where did Vesis Sterac die?", "answer": " Zepek"}],
        "portability": [],
    }
    easy, wiki = read_fact_requests(written(tmp_path, EASY_EDIT, WIKI_BIG_EDIT))
    assert easy == {"id": 9, "old": " Lumum", **usual}
    assert wiki == {"id": 1, "old": "", **usual}


def test_mend(tmp_path):
    (row,) = read_fact_requests(written(tmp_path, MEND))
    assert row == {
        "id": 0,
        "subject": "Toban Boter",
        "prompt": "What did Toban Boter play?",
        "target": " harp",
        "old": " oboe",
        "paraphrases": ["Which instrument was that of Toban Boter?"],
        "neighbors": [{"prompt": "nq question: how long is the river at bovar", "answer": " 90 miles"}],
        "portability": [],
    }


def test_rows_are_as_those_of_the_embedded_facts(tmp_path):
    embedded = fact_requests(load_facts(), 1)
    assert read_fact_requests(written(tmp_path, MEND)).features == embedded.features


def test_lines_and_compressed_files(tmp_path):
    rows = [EASY_EDIT, {**EASY_EDIT, "subject": "Zoë\u2028Boter"}]
    expected = read_fact_requests(written(tmp_path, *rows)).to_list()
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    for name, content in {
        "a.jsonl": lines,
        "a.json.xz": lzma.compress(json.dumps(rows).encode()),
        "a.jsonl.gz": gzip.compress(b"\xef\xbb\xbf" + lines),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read_fact_requests(tmp_path / name).to_list() == expected
    assert expected[1]["subject"] == "Zoë\u2028Boter"


def test_answers_get_one_space(tmp_path):
    (row,) = read_fact_requests(written(tmp_path, {**MEND, "alt": " harp "}))
    assert row["target"] == " harp"


def test_empty_target_is_left_out(tmp_path, caplog):
    rows = read_fact_requests(written(tmp_path, MEND, {**MEND, "alt": ""}, MEND))
    assert rows["id"] == [0, 2]
    assert "rows [2] have an empty target" in caplog.text


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            without(MEND, "alt"),
            "row 2: expected the keys .*zsRE in MEND's form: subject, src, .*got subject, src, pred",
        ),
        ({**ROME, "requested_rewrite": "x"}, r"requested_rewrite.target_new.str, .*got case_id, pararel_idx, req"),
        (["a"], r"row 2: expected the keys .*, got \[\"a\"\]"),
        ({}, "row 2: expected the keys .*, got {}"),
        (
            {**MEND, "alt": 3},
            r"row 2 \(zsRE in MEND's form\): expected `alt` to be a string, got '3'; correct the row",
        ),
        ({**ROME, "paraphrase_prompts": [1]}, "expected `paraphrase_prompts` to be a list of strings, got"),
        ({**EASY_EDIT, "case_id": "9"}, r"row 2 \(CounterFact in EasyEdit's form\): expected `case_id` to be 0 or"),
    ],
)
def test_row_of_no_form_is_refused(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_fact_requests(written(tmp_path, EASY_EDIT, row))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}', "expected a JSON list of objects"),
        (f"{json.dumps(MEND)}\n{{x", "line 2: expected a JSON list of objects, or one JSON object a line, got '{x'"),
        ("", "holds no edit of a fact; give a file of CounterFact in ROME's form, .*WikiBigEdit"),
    ],
)
def test_file_without_facts_is_refused(tmp_path, text, message):
    file = tmp_path / "facts.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_fact_requests(file)
