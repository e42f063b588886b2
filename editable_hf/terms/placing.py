"""Where a translation says a term, for glossaries that do not say what the model uses today.

The model itself tells: while it writes a word, its cross-attention looks at the words of the source that this word
comes from. A term is placed only where most of what it is looked at falls on one short span of the translation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.seams.transformers_seam import attention_of
from editable_hf.terms.glossary import Term

# Words that get at least this share of what the most looked-from word gets belong to the span, which must have more
# than this share of all words together.
_SHARE = 0.5


class Pieces(NamedTuple):
    """A text as the model has it, and where each of its tokens begins and ends in it; some are no text."""

    text: str
    spans: list[tuple[int, int]]

    def within(self, start: int, end: int) -> list[int]:
        """Indices of the tokens that have a part of the text from `start` to `end`."""
        return [index for index, (first, last) in enumerate(self.spans) if first < end and last > start]


def put_right_by_attention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, term: Term, source: str, translation: str
) -> str | None:
    """The translation with the term in place of what the model wrote for it; `None` where that is not safe to say.

    Args:
        model: The encoder-decoder model that translated; left as it was.
        tokenizer: Its tokenizer.
        term: To be found in the source.
        source: As the model was given it.
        translation: What it said.
    """
    inputs = tokenizer(source, return_tensors="pt", truncation=True).to(model.device)
    labels = tokenizer(text_target=translation, return_tensors="pt", truncation=True)["input_ids"].to(model.device)
    read, written = (_pieces(tokenizer, ids[0].tolist()) for ids in (inputs["input_ids"], labels))
    if read is None or written is None or written.text != translation:
        return None
    places = term.places_in_source(read.text)
    if len(places) != 1:
        return None
    ((place, form),) = places.items()
    masses = _word_masses(cross_attention(model, inputs, labels), read, written, place)
    span = placed_span(masses, most_words=len(re.findall(r"\w+", read.text[slice(*place)])))
    return None if span is None else term.put_at(translation, span, form)


def placed_span(masses: dict[tuple[int, int], float], most_words: int) -> tuple[int, int] | None:
    """From where to where in a translation a term stands; `None` if it is not on one span of so many words at most.

    Args:
        masses: How much of the attention of each word goes to the term, by where the word begins and ends.
        most_words: Of the span.
    """
    words = list(masses)
    highest = max(masses.values(), default=0.0)
    chosen = [index for index, word in enumerate(words) if masses[word] >= _SHARE * highest > 0]
    if not 1 <= len(chosen) <= most_words or chosen[-1] - chosen[0] + 1 != len(chosen):
        return None
    if sum(masses[words[index]] for index in chosen) <= _SHARE * sum(masses.values()):
        return None
    return words[chosen[0]][0], words[chosen[-1]][1]


@torch.no_grad()
def cross_attention(model: PreTrainedModel, inputs, labels: Tensor) -> Tensor:
    """What each target token looks at while it is written, `(target, source)`: the mean over layers and heads."""
    with _eager_attention(model):
        outputs = model(**inputs, labels=labels, output_attentions=True, use_cache=False)
    return torch.stack([layer[0].float().mean(0) for layer in outputs.cross_attentions]).mean(0)


@contextmanager
def _eager_attention(model: PreTrainedModel) -> Iterator[None]:
    """The other implementations do not say what is looked at."""
    before = attention_of(model.config)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _word_masses(attention: Tensor, read: Pieces, written: Pieces, place: tuple[int, int]) -> dict:
    """For each word of the translation, which part of the attention of its tokens goes to a place of the source."""
    shares = attention[:, read.within(*place)].sum(-1)
    words = [match.span() for match in re.finditer(r"\w+", written.text)]
    return {word: float(shares[written.within(*word)].mean()) for word in words}


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Pieces | None:
    """By decoding up to each token, as every tokenizer can; `None` where the whole text begins otherwise."""
    decoded = [tokenizer.decode(ids[: length + 1], skip_special_tokens=True) for length in range(len(ids))]
    if not all(decoded[-1].startswith(each) for each in decoded):
        return None
    ends = [len(each) for each in decoded]
    return Pieces(decoded[-1], list(zip([0, *ends], ends, strict=False)))
