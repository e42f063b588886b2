"""The people of the embedded corpus.

"sie" and "Sie" are left out: a sentence alone does not say whether they mean "she", "they" or "you".
"""

from english import EnglishPerson
from german import GermanNoun, GermanPerson
from template import Filler

PRONOUNS = [
    Filler(GermanPerson("ich", "mich", "mir", "1sg", "mein", "mich"), EnglishPerson("I", "me", "1sg", "my", "my")),
    Filler(
        GermanPerson("du", "dich", "dir", "2sg", "dein", "dich"), EnglishPerson("you", "you", "2sg", "your", "your")
    ),
    Filler(GermanPerson("er", "ihn", "ihm", "3sg", "sein"), EnglishPerson("he", "him", "3sg", "his", "his")),
    Filler(GermanPerson("wir", "uns", "uns", "1pl", "unser", "uns"), EnglishPerson("we", "us", "1pl", "our", "our")),
]


def _name(name: str, german_poss: str, english_poss: str) -> Filler:
    english = EnglishPerson(name, name, "3sg", english_poss, f"{name}'s" if name[-1] != "s" else f"{name}'")
    return Filler(GermanPerson(name, name, name, "3sg", german_poss), english)


def _relative(determiner: str, noun: GermanNoun, english: str) -> Filler:
    person = "3pl" if noun.gender == "p" else "3sg"
    german_poss, english_poss = {"m": ("sein", "his"), "f": ("ihr", "her"), "p": ("ihr", "their")}[noun.gender]
    forms = (format(noun, f"{case} {determiner}") for case in ("nom", "acc", "dat"))
    genitive = f"{english}'" if noun.gender == "p" else f"{english}'s"
    return Filler(
        GermanPerson(*forms, person, german_poss), EnglishPerson(english, english, person, english_poss, genitive)
    )


NAMES = [
    *(_name(name, "ihr", "her") for name in ("Anna", "Maria", "Julia", "Laura", "Clara", "Nina")),
    *(_name(name, "sein", "his") for name in ("Paul", "Peter", "Felix", "Martin", "David", "Simon")),
]
RELATIVES = [
    _relative(determiner, GermanNoun(word, gender, is_weak=is_weak), english)
    for determiner, word, gender, is_weak, english in (
        ("mein", "Bruder", "m", False, "my brother"),
        ("mein", "Schwester", "f", False, "my sister"),
        ("mein", "Vater", "m", False, "my father"),
        ("mein", "Mutter", "f", False, "my mother"),
        ("mein", "Onkel", "m", False, "my uncle"),
        ("mein", "Tante", "f", False, "my aunt"),
        ("mein", "Chef", "m", False, "my boss"),
        ("mein", "Kollegin", "f", False, "my colleague"),
        ("unser", "Nachbar", "m", True, "our neighbor"),
        ("unser", "Lehrerin", "f", False, "our teacher"),
        ("der", "Arzt", "m", False, "the doctor"),
        ("der", "Student", "m", True, "the student"),
    )
]
GROUPS = [
    _relative("mein", GermanNoun("Eltern", "p"), "my parents"),
    _relative("unser", GermanNoun("Freunde", "p"), "our friends"),
    _relative("der", GermanNoun("Kinder", "p"), "the children"),
]

SINGULAR_OTHERS = NAMES + RELATIVES
OTHERS = SINGULAR_OTHERS + GROUPS
# Pronouns count four times: each has verb forms of its own, which should not be rare.
SINGULARS = PRONOUNS[:3] * 4 + SINGULAR_OTHERS
SUBJECTS = PRONOUNS * 4 + OTHERS
