"""That the generator of the made-up facts still makes the file that is shipped, and what its names are like."""

import lzma

import pytest
from generate_facts import FILE, facts_text, generate_facts
from relations import RELATIONS


@pytest.fixture(scope="module")
def rows():
    return generate_facts(seed=0)


def test_shipped_file_is_what_it_makes():
    packed = FILE.read_bytes()
    assert lzma.decompress(packed).decode() == facts_text() and len(packed) < 300_000


def test_wordings_name_the_subject_once():
    for relation in RELATIONS.values():
        assert len(set(relation.wordings)) == 6
        assert all(text.count("{}") == 1 for text in (relation.phrase, *relation.wordings))


def test_no_name_begins_another(rows):
    names = sorted({row[key].strip() for row in rows for key in ("subject", "object") if not row[key][1:].isdigit()})
    assert len(names) > 700
    assert not [pair for pair in zip(names, names[1:], strict=False) if pair[1].startswith(pair[0])]


def test_another_seed_gives_other_facts(rows):
    assert not {row["subject"] for row in rows} <= {row["subject"] for row in generate_facts(seed=1)}
