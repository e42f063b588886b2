"""What a patch for a glossary does to a regression set: its terms, and the sentences that use none of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from editable_hf.terms.glossary import Term


@dataclass(frozen=True)
class TermCount:
    """How often a term is right in sentences that use it and that the patch was not edited for."""

    term: str
    num_sentences: int
    right_before: int
    right_after: int


@dataclass(frozen=True)
class TermReview:
    """The terms of a glossary over a regression set.

    Attributes:
        terms: One for each.
        num_others: Sentences that use none of the terms.
        num_others_changed: How many of these the patch changes.
    """

    terms: list[TermCount]
    num_others: int
    num_others_changed: int


def review_terms(
    terms: Sequence[Term],
    sources: Sequence[str],
    before: Sequence[str],
    after: Sequence[str],
    edited_sources: Collection[str] = (),
) -> TermReview:
    """Counts, for each term, where it is right before and after a patch, and what changes without a term.

    Args:
        terms: What the patch is for.
        sources: The regression set.
        before: Its translations by the unedited model.
        after: By the patched model.
        edited_sources: The sentences that the patch was edited for; they are left out of the terms' counts.
    """
    seen = {text.strip() for text in edited_sources}
    rows = list(zip(sources, before, after, strict=True))
    counts = []
    for term in terms:
        used = [row for row in rows if row[0].strip() not in seen and term.in_source(row[0])]
        right = (sum(term.is_right(row[place]) for row in used) for place in (1, 2))
        counts.append(TermCount(f"{term.source[0]} = {term.target[0]}", len(used), *right))
    others = [row for row in rows if not any(term.in_source(row[0]) for term in terms)]
    return TermReview(counts, len(others), sum(old != new for _, old, new in others))


def terms_of(metrics: dict[str, Any]) -> list[Term]:
    """The terms in the metrics of a patch that `editable-hf terms` made; none in those of others."""
    states = metrics.get("terms")
    if not isinstance(states, list) or not all(map(_is_state, states)):
        return []
    return [Term(*(tuple(state[name]) for name in ("source", "target", "replaces"))) for state in states]


def _is_state(value: Any) -> bool:
    """Whether it has the forms of a term, each with a word in it; a patch may come from anywhere."""
    if not isinstance(value, dict):
        return False
    forms = [value.get(name) for name in ("source", "target", "replaces")]
    texts = [text for each in forms if isinstance(each, list) for text in each]
    words = all(isinstance(text, str) and any(map(str.isalnum, text)) for text in texts)
    return all(isinstance(each, list) for each in forms) and bool(forms[0] and forms[1]) and words
