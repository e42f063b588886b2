"""Glossaries are read with every bad line counted, and terms are found and put right by a plain rule."""

import time

import pytest

from editable_hf.terms.glossary import Term, holds_form, read_glossary, sentences_with


@pytest.fixture
def glossary_of(tmp_path):
    def read(text):
        path = tmp_path / "glossary.tsv"
        path.write_text(text, encoding="utf-8")
        return read_glossary(path)

    return read


def test_columns_and_forms(glossary_of):
    found = glossary_of("source\ttarget\treplaces\nHaus|Häuser\tbuilding|buildings\thouse|houses\nZug\trailway\n")
    assert found.terms == [
        Term(("Haus", "Häuser"), ("building", "buildings"), ("house", "houses")),
        Term(("Zug",), ("railway",)),
    ]
    assert found.left_out == {}


def test_bad_lines_are_counted(glossary_of):
    found = glossary_of(
        "Haus\tbuilding\nHaus\tbuilding\nhaus\tbuilding\nZug\trailway\nZug\ttrain\nBuch\t\n\tbook\nno tab\n\n"
        "Stadt\t<b>town</b>\na\tb\tc\td\n?\t!\nHund\tdog|dogs\tcur\n"
    )
    assert [term.source for term in found.terms] == [("Haus",)]
    assert found.left_out == {
        **{"contradiction": 2, "repeated": 2, "empty target": 1, "empty source": 1, "no tab": 1, "empty line": 1},
        **{"markup": 1, "too many columns": 1, "no word": 1},
        "not as many forms of what is replaced as of the target": 1,
    }


@pytest.mark.parametrize(("text", "message"), [("", "it is empty"), ("Haus\t\n", "empty target: 1")])
def test_no_usable_line_is_an_error(glossary_of, text, message):
    with pytest.raises(ValueError, match=message):
        glossary_of(text)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ends in .tsv"):
        read_glossary(tmp_path / "glossary.xlsx")


def test_ten_thousand_lines_are_quick(glossary_of):
    start = time.perf_counter()
    terms = glossary_of("".join(f"wort{number}\tword{number}\n" for number in range(10_000))).terms
    found = sentences_with(terms, ["wort17 und wort99 .", "nichts davon ."] * 500)
    assert [number for number, each in enumerate(found) if each] == [17, 99]
    assert found[17] == ["wort17 und wort99 ."]  # once
    assert time.perf_counter() - start < 30


def test_inflection_is_a_plain_rule():
    assert holds_form("Des Hauses Tür", "haus") and holds_form("two houses.", "house")
    assert not holds_form("das Haushalten", "Haus") and not holds_form("das Rathaus", "Haus")
    assert not holds_form("zugs", "Zug")  # too short a stem
    assert holds_form("the  old\ttowns", "old town")
    assert sentences_with([Term(("alte Stadt",), ("old town",))], ["Die alte Stadt.", "alte"]) == [["Die alte Stadt."]]


def test_term_is_put_right_only_where_it_is_safe():
    term = Term(("Haus",), ("building", "buildings"), ("house", "houses"))
    assert term.put_right("the house .") == "the building ." and term.put_right("Houses, two") == "Buildings, two"
    assert term.put_right("house and house") is None and term.put_right("the home") is None
    assert term.is_right("two buildings") and not term.is_right("a house, a building") and not term.is_right("home")
