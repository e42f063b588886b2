"""Glossaries as their files have them: tab-separated lines, TBX (ISO 30042) and PO (gettext)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from editable_hf.data.text_lines import read_lines
from editable_hf.versions import require_extra

# The forms of the source term, of the target term and of what that replaces, or why an entry cannot be used.
Entry = list[tuple[str, ...]] | str
COLUMNS = ["source", "target", "replaces"]


def read_entries(path: str | os.PathLike, languages: Sequence[str] | None = None) -> list[Entry]:
    """All entries of a glossary file, in their order.

    Args:
        path: A `.tsv`, `.tbx`, `.po` or `.pot` file.
        languages: Of source and target, as a TBX file names them.

    Raises:
        ImportError: For TBX and PO without translate-toolkit, naming the extra.
        OSError: If the file cannot be read.
        ValueError: If it is of another kind or damaged, TBX and no languages are given, or another one and they are.
    """
    path = Path(path)
    if languages is not None and path.suffix in (".tsv", ".po", ".pot"):
        raise ValueError(f"{path} does not name languages, as a .tbx file does; leave `--glossary_languages` out.")
    if path.suffix == ".tsv":
        return _read_tsv(path)
    if path.suffix == ".tbx":
        return list(_read_tbx(path, languages))
    if path.suffix in (".po", ".pot"):
        return list(_read_po(path))
    raise ValueError(f"Expected a glossary that ends in .tsv, .tbx or .po, but got {path}; save it as one of these.")


def _read_tsv(path: Path) -> list[Entry]:
    lines = read_lines(path)
    if lines and [cell.strip().lower() for cell in lines[0].split("\t")] in (COLUMNS[:2], COLUMNS):
        del lines[0]
    return [_parse_line(line) for line in lines]


def _parse_line(line: str) -> Entry:
    if not line.strip():
        return "empty line"
    cells = [_forms(cell.split("|")) for cell in line.split("\t")]
    if len(cells) == 1:
        return "no tab"
    return cells if len(cells) <= len(COLUMNS) else "too many columns"


def _read_tbx(path: Path, languages: Sequence[str] | None) -> Iterator[Entry]:
    """What a concept is called in two languages: all terms of the source are met, the first of the target is wanted,
    and those that the file calls deprecated are replaced."""
    require_extra("translate", "terms")
    from translate.storage.tbx import tbxfile

    source, target = languages or (None, None)
    units = _parse_file(path, "TBX", lambda text: tbxfile.parsestring(text, source, target)).units
    if languages is None:
        lang = "{http://www.w3.org/XML/1998/namespace}lang"
        found = sorted({node.get(lang, "?") for unit in units for node in unit.getlanguageNodes()})
        raise ValueError(
            f"Expected the languages of source and target for {path}, which has {', '.join(found) or 'none'}; name "
            "two of them, e.g. `--glossary_languages de en`."
        )
    for unit in units:
        if unit.source_dom is None or unit.target_dom is None:
            yield "not in both languages"
            continue
        sources = [term.text for term in unit.get_source_terms()] or [unit.source]  # of a group, for the whole unit
        terms = unit.get_target_terms()
        targets = [term.text for term in terms if not term.deprecated] if terms else [unit.target]
        replaced = [term.text for term in terms if term.deprecated]
        yield [_forms(sources), _forms(targets)[:1], _forms(replaced)]


def _read_po(path: Path) -> Iterator[Entry]:
    """Messages and their translations, with the forms of both where a message has a plural."""
    require_extra("translate", "terms")
    from translate.storage.pypo import pofile

    for unit in _parse_file(path, "PO", pofile.parsestring).units:
        if unit.isheader():
            continue
        if unit.isobsolete() or unit.isfuzzy():
            yield "obsolete" if unit.isobsolete() else "fuzzy"
            continue
        yield [_forms(text.strings if unit.hasplural() else [text]) for text in (unit.source, unit.target)]


def _parse_file(path: Path, kind: str, parse: Callable):
    try:
        return parse(path.read_bytes())
    except (ValueError, SyntaxError, AssertionError) as error:  # of the PO parser, lxml, and for another root
        raise ValueError(
            f"Expected a glossary in {kind}, but {path} cannot be read as such "
            f"({str(error).strip() or 'it is something else'}); mend it, or export it again."
        ) from error


def _forms(texts: Sequence[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(text).strip() for text in texts if text and text.strip()))
