"""Sentence templates: a German and an English pattern over the same slots."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple


class Filler(NamedTuple):
    """A slot value: what the German and the English pattern format (a string or an object with forms)."""

    de: Any
    en: Any


@dataclass(frozen=True)
class Template:
    """A family of sentence pairs.

    Patterns are `str.format` strings over the slots. The alternatives and paraphrases use the same slots.

    Attributes:
        id: "domain.name".
        de: German pattern.
        en: English pattern, the only one the corpus uses.
        slots: The fillers each slot may take.
        de_paraphrases: Other German wordings with the same translation.
        en_alternatives: Other valid translations; never in the corpus.
    """

    id: str
    de: str
    en: str
    slots: Mapping[str, Sequence[Filler]]
    de_paraphrases: tuple[str, ...] = ()
    en_alternatives: tuple[str, ...] = ()

    @property
    def domain(self) -> str:
        return self.id.partition(".")[0]

    @property
    def wordings(self) -> tuple[str, ...]:
        """All German patterns."""
        return (self.de, *self.de_paraphrases)

    @property
    def num_fillings(self) -> int:
        """An upper bound of the number of distinct fillings."""
        return prod(len({id(filler) for filler in fillers}) for fillers in self.slots.values())

    def sample(self, rng: random.Random) -> dict[str, Filler]:
        """Draws a value for every slot; no two slots get the same one."""
        while True:
            filling = {slot: rng.choice(fillers) for slot, fillers in self.slots.items()}
            if len({id(filler) for filler in filling.values()}) == len(filling):
                return filling


def german(pattern: str, filling: Mapping[str, Filler]) -> str:
    """Fills a German pattern and capitalises the sentence."""
    return _capitalise(pattern.format(**{slot: filler.de for slot, filler in filling.items()}))


def english(pattern: str, filling: Mapping[str, Filler]) -> str:
    """Fills an English pattern and capitalises the sentence."""
    return _capitalise(pattern.format(**{slot: filler.en for slot, filler in filling.items()}))


def _capitalise(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
