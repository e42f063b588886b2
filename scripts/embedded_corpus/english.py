"""English inflection for the embedded corpus: articles, nouns, verbs and people.

As in `german`, the classes implement `__format__`: `"{n:a old}"` gives "an old table", `"{s:have}"` agrees with `s`.
"""

from dataclasses import dataclass
from functools import cache

# Vowel letters that are not vowel sounds.
_CONSONANT_SOUNDS = ("uni", "use", "eu", "one")


def indefinite_article(phrase: str) -> str:
    """Returns "a" or "an" for the phrase that follows."""
    is_vowel = phrase[0].lower() in "aeiou" and not phrase.lower().startswith(_CONSONANT_SOUNDS)
    return "an" if is_vowel else "a"


@dataclass(frozen=True)
class EnglishNoun:
    """A noun; formatting takes the words before it, where a leading `a` becomes "a" or "an"."""

    text: str
    is_plural: bool = False

    def __format__(self, spec: str) -> str:
        words = spec.split()
        if words[:1] == ["a"]:
            phrase = " ".join([*words[1:], self.text])
            return phrase if self.is_plural else f"{indefinite_article(phrase)} {phrase}"
        if words[:1] == ["this"] and self.is_plural:
            words[0] = "these"
        return " ".join([*words, self.text])


_IRREGULAR = {  # 1sg, 3sg, others
    "be": ("am", "is", "are"),
    "was": ("was", "was", "were"),
    "have": ("have", "has", "have"),
    "do": ("do", "does", "do"),
    "don't": ("don't", "doesn't", "don't"),
    "go": ("go", "goes", "go"),
}


@cache
def agree(verb: str, person: str) -> str:
    """Returns the present form of an English verb that agrees with a person (`was` and `don't` are entries too).

    Args:
        verb: The base form.
        person: 1sg, 2sg, 3sg, 1pl or 3pl.

    Returns:
        The finite form, e.g. "studies" for `("study", "3sg")`.
    """
    if verb in _IRREGULAR:
        return _IRREGULAR[verb][{"1sg": 0, "3sg": 1}.get(person, 2)]
    if person != "3sg":
        return verb
    if verb.endswith(("s", "sh", "ch", "x", "z")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


@dataclass(frozen=True)
class EnglishPerson:
    """Someone a sentence is about; formatting takes nothing (the subject) or a verb that should agree."""

    subject: str
    obj: str
    person: str  # 1sg, 2sg, 3sg, 1pl or 3pl
    poss: str  # "her", also for a name
    genitive: str  # "Anna's"; equal to `poss` for pronouns

    def __format__(self, spec: str) -> str:
        return agree(spec, self.person) if spec else self.subject
