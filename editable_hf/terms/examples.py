"""Sentences that use a term: some to edit for, some to check an edit with, some that no edit ever sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.evaluation.translator import Translator
from editable_hf.terms.glossary import Term, sentences_with
from editable_hf.terms.placing import put_right_by_attention


@dataclass(frozen=True)
class Example:
    """A source sentence that uses a term, the model's own translation, and the same with the term put right."""

    source: str
    before: str
    target: str


@dataclass(frozen=True)
class TermExamples:
    """The sentences of one term.

    Attributes:
        term: The term.
        edit: What to edit for.
        check: Looked at between rounds of edits; those that fail join the edit.
        held_out: Never used for an edit, so that the share of right ones speaks of unseen sentences.
        left_out: How many sentences were not used, by reason.
    """

    term: Term
    edit: list[Example]
    check: list[Example]
    held_out: list[Example]
    left_out: dict[str, int]


# How many sentences of a term play each part, at most.
_SIZES = {"edit": 4, "check": 6, "held_out": 10}


def find_examples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    terms: Sequence[Term],
    sentences: Sequence[str],
    prefix: str = "",
    progress: str | None = None,
) -> list[TermExamples]:
    """Finds the sentences of each term, and translates them until there are enough.

    A sentence can be edited for where the model's translation has what the term replaces exactly once, or, if the
    glossary does not say what that is, where the model's attention tells (see [`put_right_by_attention`]). Where the
    translation is right already, there is nothing to edit, but an edit can spoil it: it is used to check or held out.
    All others are left out and counted.

    Args:
        model: The unedited model.
        tokenizer: Its tokenizer.
        terms: Of a glossary.
        sentences: The user's source sentences.
        prefix: To put before each source.
        progress: Title of a progress bar, none if not given.
    """
    pairs = list(zip(terms, sentences_with(terms, sentences), strict=True))
    return [
        _examples_of(model, tokenizer, term, found, prefix)
        for term, found in tqdm(pairs, desc=progress, disable=progress is None, unit="term")
    ]


def _examples_of(model, tokenizer, term: Term, sources: list[str], prefix: str) -> TermExamples:
    parts: dict[str, list[Example]] = {name: [] for name in _SIZES}
    left_out: Counter[str] = Counter()
    for number, source in enumerate(sources):
        free = [name for name, rows in parts.items() if len(rows) < _SIZES[name]]
        if not free:
            left_out["enough others"] = len(sources) - number
            break
        (before,) = translate(model, tokenizer, [prefix + source])
        right = term.is_right(before)
        if right:
            target = before
        elif term.replaces:
            target = term.put_right(before)
        else:
            target = put_right_by_attention(model, tokenizer, term, prefix + source, before)
        if target is None:
            left_out["cannot be put right safely" if term.replaces else "cannot be placed by attention"] += 1
            continue
        free = [name for name in free if name != "edit" or not right]
        if not free:
            left_out["right already"] += 1
            continue
        name = min(free, key=lambda each: len(parts[each]) / _SIZES[each])
        parts[name].append(Example(prefix + source, before, target))
    return TermExamples(term, **parts, left_out=dict(left_out))


def translate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    params: Mapping[str, Tensor] | None = None,
) -> list[str]:
    """What the model translates with as many beams as its generation config says, with edited parameters if given."""
    beams = model.generation_config.num_beams or 1
    translator = Translator(model, tokenizer, sources, num_beams=beams, keep_encoded=False)
    return translator.after_edits([params or {}])[0]
