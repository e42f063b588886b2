"""Glossaries in TBX and PO give the same terms as tab-separated lines, and what is unusable is counted or refused."""

import pytest

from editable_hf.cli import main
from editable_hf.terms.glossary import Term, read_glossary

DEPRECATED = '<termNote type="administrativeStatus">deprecatedTerm-admn-sts</termNote>'


def tbx(*concepts):
    """Each concept is a list of a language and its terms."""
    entries = ""
    for concept in concepts:
        sets = (
            f'<langSet xml:lang="{lang}">{"".join(f"<tig><term>{term}</term></tig>" for term in terms)}</langSet>'
            for lang, *terms in concept
        )
        entries += f"<termEntry>{''.join(sets)}</termEntry>"
    entries = entries.replace("!</term>", f"</term>{DEPRECATED}")
    return f'<?xml version="1.0"?><martif type="TBX" xml:lang="en"><text><body>{entries}</body></text></martif>'


PO = """msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

#. a place to live in
msgid "house"
msgid_plural "houses"
msgstr[0] "Haus"
msgstr[1] "Häuser"

#, fuzzy
msgid "train"
msgstr "Zug"

msgid "book"
msgstr ""

msgid "click %s"
msgstr "%s klicken"

msgctxt "bank"
msgid "account"
msgstr "Konto"

#~ msgid "gone"
#~ msgstr "weg"
"""


@pytest.fixture
def glossary_of(tmp_path):
    def read(text, ending, languages=None):
        path = tmp_path / f"glossary.{ending}"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_glossary(path, languages)

    return read


def test_tbx(glossary_of):
    house = [("en", "home!", "building", "dwelling", "house!"), ("fr", "maison"), ("de", "Haus", "Häuser", "Haus")]
    train, book = [("de", "Zug")], [("de", "Buch"), ("en", "book!")]
    found = glossary_of(tbx(house, train, book), "tbx", ["de", "en"])
    assert found.terms == [Term(("Haus", "Häuser"), ("building",), ("home", "house"))]
    assert found.left_out == {"not in both languages": 1, "empty target": 1}
    assert glossary_of(tbx(house), "tbx", ["fr", "de"]).terms == [Term(("maison",), ("Haus",))]


def test_tbx_with_grouped_terms(glossary_of):
    text = tbx([("de", "Zug"), ("en", "railway")])
    grouped = text.replace("<tig>", "<ntig><termGrp>").replace("</tig>", "</termGrp></ntig>")
    assert glossary_of(grouped, "tbx", ["de", "en"]) == glossary_of(text, "tbx", ["de", "en"])


def test_po(glossary_of):
    found = glossary_of(PO, "po")
    assert found.terms == [Term(("house", "houses"), ("Haus", "Häuser")), Term(("account",), ("Konto",))]
    assert found.left_out == {"fuzzy": 1, "empty target": 1, "markup": 1, "obsolete": 1}


@pytest.mark.parametrize(
    ("text", "ending", "message"),
    [
        ("<martif", "tbx", "in TBX, but .* cannot be read as such .*line 1"),
        ("", "tbx", "in TBX, but .* cannot be read as such"),
        ("<html/>", "tbx", "it is something else"),
        (tbx([("de", "Zug")]), "tbx", "none of 1 entries can be used .not in both languages: 1"),
        ("hello", "po", "in PO, but .* cannot be read as such .*line 1"),
        (PO.encode("latin-1"), "po", "in PO, but .* cannot be read as such"),
        ("", "po", "it is empty"),
        ("a\tb", "csv", "ends in .tsv, .tbx or .po"),
    ],
)
def test_files_that_cannot_be_used(glossary_of, text, ending, message):
    with pytest.raises(ValueError, match=message):
        glossary_of(text, ending, ["de", "en"] if ending == "tbx" else None)


def test_languages_of_tbx_are_asked_for(glossary_of):
    with pytest.raises(ValueError, match="which has de, en, fr; name two of them"):
        glossary_of(tbx([("en", "house"), ("fr", "maison"), ("de", "Haus")]), "tbx")


def test_entities_of_a_stranger_read_no_file(glossary_of, tmp_path):
    (tmp_path / "secret").write_text("secret")
    text = tbx([("de", "&x;"), ("en", "house")]).replace(
        "<martif", f'<!DOCTYPE martif [<!ENTITY x SYSTEM "file://{tmp_path}/secret">]><martif', 1
    )
    with pytest.raises(ValueError, match="empty source: 1"):
        glossary_of(text, "tbx", ["de", "en"])


@pytest.mark.parametrize("ending", ["tbx", "po"])
def test_missing_toolkit_names_the_extra(glossary_of, monkeypatch, ending):
    monkeypatch.setattr("editable_hf.versions.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"editable_hf\[terms\]"):
        glossary_of("", ending, ["de", "en"] if ending == "tbx" else None)


def test_command_reads_tbx(translator_folder, sentence_pairs, tmp_path, capsys):
    glossary, corpus = tmp_path / "glossary.tbx", tmp_path / "corpus.txt"
    glossary.write_text(tbx([("en", "the woman", "the dog!"), ("de", "elefant")]))
    corpus.write_text("".join(f"{text}\n" for text in sentence_pairs[0]))
    args = ["terms", str(translator_folder), str(glossary), "--corpus", str(corpus), "-o", str(tmp_path / "patch")]
    assert main(args) == 2 and "--glossary_languages de en" in capsys.readouterr().err
    assert main([*args, "--glossary_languages", "de", "en"]) == 1
    assert "Terms that no sentence of the corpus uses: 1" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["g.tsv", "g.po"])
def test_languages_are_those_of_tbx(name, tmp_path):
    (tmp_path / name).write_text("Haus\thouse\n")
    with pytest.raises(ValueError, match="does not name languages, as a .tbx file does"):
        read_glossary(tmp_path / name, ["de", "en"])
