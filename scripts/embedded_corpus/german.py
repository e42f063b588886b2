"""German inflection for the embedded corpus: articles, adjectives, nouns, verbs and people.

Nouns and people implement `__format__`, so that a sentence pattern can ask for a form in place:
`"{n:acc ein neu}"` gives "einen neuen Tisch", `"{s:haben}"` the form of "haben" that agrees with the person `s`.
"""

from dataclasses import dataclass
from functools import cache

# Rows are cases, columns masculine, feminine, neuter, plural.
_COLUMNS = {"m": 0, "f": 1, "n": 2, "p": 3}
_DEFINITE = {
    "nom": ("der", "die", "das", "die"),
    "acc": ("den", "die", "das", "die"),
    "dat": ("dem", "der", "dem", "den"),
}
_STRONG = {"nom": ("er", "e", "es", "e"), "acc": ("en", "e", "es", "e"), "dat": ("em", "er", "em", "en")}
_WEAK = {"nom": ("e", "e", "e", "en"), "acc": ("en", "e", "e", "en"), "dat": ("en", "en", "en", "en")}
_MIXED = {"nom": ("er", "e", "es", "en"), "acc": ("en", "e", "es", "en"), "dat": ("en", "en", "en", "en")}
_EIN = {"nom": ("", "e", "", "e"), "acc": ("en", "e", "", "e"), "dat": ("em", "er", "em", "en")}

_EIN_WORDS = frozenset({"ein", "kein", "mein", "dein", "sein", "ihr", "unser"})
_DER_WORDS = {"dieser": "dies"}
# A preposition with the definite article; the contraction is used wherever German has a usual one.
_CONTRACTIONS = {
    "im": ("in", {"dem": "im"}),
    "ins": ("in", {"das": "ins"}),
    "beim": ("bei", {"dem": "beim"}),
    "vom": ("von", {"dem": "vom"}),
    "zum": ("zu", {"dem": "zum", "der": "zur"}),
}
_ADJECTIVE_STEMS = {"teuer": "teur", "dunkel": "dunkl", "hoch": "hoh"}


@dataclass(frozen=True)
class GermanNoun:
    """A noun with the information needed to decline it.

    Formatting takes `"<case>[.pl] [determiner] [adjective stems]"`: case is nom, acc or dat, the determiner is
    der, dieser, an ein-word (ein, kein, mein, ...), a contracted preposition (im, ins, beim, vom, zum)
    or `-` for none. No specification gives the bare nominative.
    """

    singular: str
    gender: str  # m, f or n; p for nouns used only in the plural
    plural: str = ""
    is_weak: bool = False  # adds -n or -en in every form but the nominative singular

    def __format__(self, spec: str) -> str:
        return decline(self, spec) if spec else self.singular


def _bare(noun: GermanNoun, case: str, column: str) -> str:
    if column != "p":
        if noun.is_weak and case != "nom":
            return noun.singular + ("n" if noun.singular.endswith(("e", "r")) else "en")
        return noun.singular
    form = noun.singular if noun.gender == "p" else noun.plural
    if not form:
        raise ValueError(f"Expected a plural for the noun {noun.singular!r}, got none. Add it to the lexicon.")
    if case == "dat" and not form.endswith(("n", "s", "A")):  # A: abbreviations such as USA
        return form + "n"
    return form


def _determiner(word: str, case: str, index: int) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The inflected determiner and the table of the adjective endings that follow it."""
    if word == "-":
        return "", _STRONG
    if word == "der":
        return _DEFINITE[case][index], _WEAK
    if word in _DER_WORDS:
        return _DER_WORDS[word] + _STRONG[case][index], _WEAK
    if word in _EIN_WORDS:
        return word + _EIN[case][index], _MIXED
    if word in _CONTRACTIONS:
        preposition, contracted = _CONTRACTIONS[word]
        article = _DEFINITE[case][index]
        return contracted.get(article, f"{preposition} {article}"), _WEAK
    raise ValueError(f"Expected a determiner such as 'der', 'ein' or 'im', got {word!r}.")


@cache
def decline(noun: GermanNoun, spec: str) -> str:
    """Declines a noun phrase.

    Args:
        noun: The noun.
        spec: `"<case>[.pl] [determiner] [adjective stems]"`, see `GermanNoun`.

    Returns:
        The phrase, e.g. "einem alten Haus" for `"dat ein alt"`.

    Raises:
        ValueError: If the case or the determiner is unknown, or the noun has no plural.
    """
    number_and_case, *words = spec.split()
    case, _, number = number_and_case.partition(".")
    if case not in _DEFINITE:
        raise ValueError(f"Expected the case nom, acc or dat, got {case!r} in {spec!r}.")
    column = "p" if number == "pl" else noun.gender
    index = _COLUMNS[column]
    determiner, endings = _determiner(words[0] if words else "-", case, index)
    adjectives = [_ADJECTIVE_STEMS.get(stem, stem) + endings[case][index] for stem in words[1:]]
    return " ".join(part for part in (determiner, *adjectives, _bare(noun, case, column)) if part)


_IRREGULAR = {  # 1sg, 2sg, 3sg, plural
    "sein": ("bin", "bist", "ist", "sind"),
    "haben": ("habe", "hast", "hat", "haben"),
    "werden": ("werde", "wirst", "wird", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen"),
    "können": ("kann", "kannst", "kann", "können"),
    "müssen": ("muss", "musst", "muss", "müssen"),
    "wollen": ("will", "willst", "will", "wollen"),
    "dürfen": ("darf", "darfst", "darf", "dürfen"),
    "sollen": ("soll", "sollst", "soll", "sollen"),
    "mögen": ("mag", "magst", "mag", "mögen"),
    "möchten": ("möchte", "möchtest", "möchte", "möchten"),
    "würden": ("würde", "würdest", "würde", "würden"),
    "war": ("war", "warst", "war", "waren"),
    "hatte": ("hatte", "hattest", "hatte", "hatten"),
}
# The stem of the second and third person singular, where the vowel changes.
_CHANGED_STEMS = {
    "essen": "iss", "fahren": "fähr", "helfen": "hilf", "laufen": "läuf", "lesen": "lies", "nehmen": "nimm",
    "schlafen": "schläf", "sehen": "sieh", "sprechen": "sprich", "tragen": "träg", "treffen": "triff",
}  # fmt: skip


@cache
def conjugate(verb: str, person: str) -> str:
    """Conjugates a German verb in the present tense (`war`, `hatte` and `würden` are entries of their own).

    Args:
        verb: The infinitive without a separable prefix.
        person: 1sg, 2sg, 3sg, 1pl or 3pl.

    Returns:
        The finite form, e.g. "fährt" for `("fahren", "3sg")`.
    """
    if verb in _IRREGULAR:
        return _IRREGULAR[verb][{"1sg": 0, "2sg": 1, "3sg": 2}.get(person, 3)]
    if person in ("1pl", "3pl"):
        return verb
    stem = verb.removesuffix("en")
    if person == "1sg":
        return stem + "e"
    if verb in _CHANGED_STEMS:
        stem = _CHANGED_STEMS[verb]
    elif stem.endswith(("t", "d", "chn", "ffn")):
        stem += "e"
    if person == "2sg" and not stem.endswith(("s", "ß", "z")):
        return stem + "st"
    return stem + "t"


@dataclass(frozen=True)
class GermanPerson:
    """Someone a sentence is about.

    Formatting takes nothing (nominative), `acc`, `dat` or the infinitive of a verb that should agree.
    """

    nom: str
    acc: str
    dat: str
    person: str  # 1sg, 2sg, 3sg, 1pl or 3pl
    poss: str  # the possessive as a determiner for `GermanNoun`, e.g. "mein"
    refl: str = "sich"

    def __format__(self, spec: str) -> str:
        if spec in ("acc", "dat"):
            return self.acc if spec == "acc" else self.dat
        return conjugate(spec, self.person) if spec else self.nom


@dataclass(frozen=True)
class GermanCountry:
    """A country; formatting takes `acc` or a preposition: `in`, `nach` (where to), `aus` or `von`."""

    noun: GermanNoun
    has_article: bool

    def __format__(self, spec: str) -> str:
        if not self.has_article:
            return self.noun.singular if spec == "acc" else f"{spec} {self.noun.singular}"
        if spec == "aus":
            return f"aus {self.noun:dat der}"
        return format(self.noun, {"acc": "acc der", "in": "dat im", "nach": "acc ins", "von": "dat vom"}[spec])
