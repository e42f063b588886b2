"""Glossaries: which word is to become which, read from a file, and when a sentence uses one."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from editable_hf.terms.glossary_files import Entry, read_entries

_WORD = re.compile(r"\w+")
_MARKUP = re.compile(r"<[^<>]*>|&#?\w+;|\{\w*\}|%\w")

# A word is taken for an inflected form of one of at least so many letters if it adds at most so many at its end.
SHORTEST_STEM, LONGEST_ENDING = 4, 2


@dataclass(frozen=True)
class Term:
    """One entry of a glossary; each side lists the forms of the term, the base form first.

    Attributes:
        source: Forms in the source language.
        target: Forms wanted in the translation.
        replaces: Forms that the model uses today, one for each of `target`, or any number if `target` has one form;
            empty if the glossary does not say, see [`put_right_by_attention`].
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    replaces: tuple[str, ...] = ()

    def in_source(self, sentence: str) -> bool:
        """Whether a source sentence uses the term, perhaps inflected."""
        return any(holds_form(sentence, form) for form in self.source)

    def is_right(self, translation: str) -> bool:
        """Whether a translation uses the term, perhaps inflected, and nothing that it replaces."""
        replaced = any(_exact(form).search(translation) for form in self.replaces)
        return not replaced and any(holds_form(translation, form) for form in self.target)

    def put_right(self, translation: str) -> str | None:
        """The translation with what the term replaces replaced; `None` unless that stands in it exactly once."""
        return self.replaced_in(translation) if len(self._replacements(translation)) == 1 else None

    def replaced_in(self, translation: str) -> str:
        """The translation with all that the term replaces replaced."""
        done = ""
        while places := self._replacements(translation):
            start, end, form = min(places, key=lambda place: (place[0], -place[1]))
            done, translation = done + translation[:start] + form, translation[end:]
        return done + translation

    def _replacements(self, translation: str) -> list[tuple[int, int, str]]:
        """Where something stands that the term replaces, from and to, and what is to stand there."""
        places = []
        for number, form in enumerate(self.replaces):
            wanted = self.target[number if len(self.target) > 1 else 0]
            for match in _exact(form).finditer(translation):
                # As at the beginning of a sentence.
                upper = match[0][:1].isupper() and not self.replaces[0][:1].isupper()
                places.append((*match.span(), wanted[:1].upper() + wanted[1:] if upper else wanted))
        return places

    def places_in_source(self, sentence: str) -> dict[tuple[int, int], int]:
        """Where a source sentence uses the term, from and to, and which of the forms it is."""
        found = {}
        for number, form in enumerate(self.source):
            for match in _with_ending(form).finditer(sentence):
                found.setdefault(match.span(), number)
        return found

    def put_at(self, translation: str, span: tuple[int, int], form: int) -> str:
        """The translation with the term in place of a span, in the form of that number if both sides have as many."""
        start, end = span
        text = self.target[form if len(self.target) == len(self.source) else 0]
        if not _WORD.search(translation[:start]) and translation[start].isupper():
            text = text[:1].upper() + text[1:]
        return translation[:start] + text + translation[end:]


@dataclass(frozen=True)
class Glossary:
    """The usable entries of a glossary, and how many lines were left out for which reason."""

    terms: list[Term]
    left_out: dict[str, int]


def read_glossary(path: str | os.PathLike, languages: Sequence[str] | None = None) -> Glossary:
    """Reads a glossary of source terms, target terms, and perhaps what these replace.

    Entries that cannot be used are left out and counted; of terms that contradict each other, all.

    Args:
        path: A `.tsv` file of up to three columns, each of which may list several forms separated by `|`, where a
            first line that reads "source", "target" (and "replaces") is a heading; a `.tbx` file, where terms of the
            target that are deprecated are replaced; or a `.po` file, where the forms are those of a plural.
        languages: Of source and target, as a TBX file names them.

    Raises:
        ImportError: For TBX and PO without translate-toolkit, naming the extra.
        FileNotFoundError: If there is no such file.
        ValueError: If it is not of these kinds, is damaged, or no entry can be used.
    """
    entries = read_entries(path, languages)
    left_out: Counter[str] = Counter()
    wanted: defaultdict[str, list[Term]] = defaultdict(list)
    for entry in entries:
        term = _term(entry)
        if isinstance(term, str):
            left_out[term] += 1
        else:
            wanted[term.source[0].casefold()].append(term)
    terms = []
    for same in wanted.values():
        if len({term.target for term in same}) > 1:
            left_out["contradiction"] += len(same)
            continue
        terms.append(same[0])
        if len(same) > 1:
            left_out["repeated"] += len(same) - 1
    if not terms:
        raise ValueError(
            f"Expected source terms with target terms in {path}, but none of {len(entries):,} entries can be used "
            f"({describe_counts(left_out) or 'it is empty'}); mend the glossary."
        )
    return Glossary(terms, dict(left_out))


def describe_counts(counts: dict[str, int]) -> str:
    """Reasons and how often each was met, in words."""
    return ", ".join(f"{reason}: {count:,}" for reason, count in counts.items())


def holds_form(text: str, form: str) -> bool:
    """Whether a text has the form as whole words, in any case, or with an ending on the last word.

    The rule: a last word of at least `SHORTEST_STEM` letters may be followed by up to `LONGEST_ENDING` more letters.
    Other inflections (umlauts, irregular plurals) must be listed.
    """
    return _with_ending(form).search(text) is not None


def sentences_with(terms: Sequence[Term], sentences: Iterable[str]) -> list[list[str]]:
    """For each term the distinct sentences that use it, in their order; quick for thousands of terms."""
    sentences = list(dict.fromkeys(text.strip() for text in sentences if text.strip()))
    index: defaultdict[str, list[int]] = defaultdict(list)
    for number, sentence in enumerate(sentences):
        for word in set(_WORD.findall(sentence.casefold())):
            for cut in range(min(LONGEST_ENDING, len(word) - 1) + 1):
                index[word[: len(word) - cut]].append(number)
    found = []
    for term in terms:
        firsts = {_WORD.findall(form.casefold())[0] for form in term.source}
        numbers = sorted({number for first in firsts for number in index.get(first, ())})
        found.append([sentences[number] for number in numbers if term.in_source(sentences[number])])
    return found


def _term(entry: Entry) -> Term | str:
    """The term of an entry, or why there is none."""
    if isinstance(entry, str):
        return entry
    if not entry[0]:
        return "empty source"
    if not entry[1]:
        return "empty target"
    forms = [form for cell in entry for form in cell]
    if any(map(_MARKUP.search, forms)):
        return "markup"
    if not all(map(_WORD.search, forms)):
        return "no word"
    term = Term(*entry)
    if len(term.target) > 1 and len(term.replaces) not in (0, len(term.target)):
        return "not as many forms of what is replaced as of the target"
    return term


def _exact(form: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){_spaced(form)}(?!\w)", re.IGNORECASE)


def _with_ending(form: str) -> re.Pattern[str]:
    last = _WORD.findall(form)[-1]
    ending = rf"[^\W\d_]{{0,{LONGEST_ENDING}}}" if len(last) >= SHORTEST_STEM else ""
    return re.compile(rf"(?<!\w){_spaced(form)}{ending}(?!\w)", re.IGNORECASE)


def _spaced(form: str) -> str:
    return r"\s+".join(map(re.escape, form.split()))
