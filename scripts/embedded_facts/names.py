"""Made-up names, and the closed sets of plain words that facts have as objects."""

import random

_STARTS = "B Br D Dr F G Gr H J K Kl L M N P Pr R S Sk St T Tr V W Z".split()
_VOWELS = "a e i o u".split()
_MIDDLES = "b d f g k l lm ln lv m n nd nt p r rd rl rn rv s sk st t v z".split()
_ENDINGS = {
    "country": "avia onia uria estan oland".split(),
    "city": "ar ek in olm ostra um".split(),
    "river": "une aye ova iss".split(),
    "currency": "ot unt ero ik".split(),
    "language": "ish ese".split(),
    "company": "ex ico on".split(),
    "place": "isk oth und aal".split(),  # in titles
    "given name": "a an el io is".split(),
    "family name": "ac er idge ow urn".split(),
}
WORDS = {
    "profession": "baker painter teacher doctor judge sailor pilot farmer tailor dancer lawyer miner singer soldier "
    "butcher gardener".split(),
    "instrument": "violin piano flute harp trumpet guitar cello drum oboe lute banjo clarinet".split(),
    "genre": "comedy tragedy satire fantasy romance horror history travel crime adventure poetry science".split(),
    "product": "bicycles lamps shoes clocks wagons carpets engines candles boats knives mirrors umbrellas chairs "
    "radios bottles tents".split(),
    "year": [str(year) for year in range(1801, 1901)],
}
_TITLES = "The Road to {}|Winter in {}|Letters from {}|The Queen of {}|A Night in {}|Songs of {}|The Winds of {}"


def make_names(kind: str, count: int, taken: set[str], rng: random.Random) -> list[str]:
    """Names of one word, none of which begins another of `taken`; adds them there."""
    names = []
    while len(names) < count:
        parts = [rng.choice(part) for part in (_STARTS, _VOWELS, _MIDDLES, _ENDINGS[kind])]
        name = "".join(parts)
        if not any(name.startswith(other) or other.startswith(name) for other in taken):
            taken.add(name)
            names.append(name)
    return names


def book_titles(count: int, taken: set[str], rng: random.Random) -> list[str]:
    """Titles of books, whose last word is their own: small models find a fact by one word rather than by two."""
    return [rng.choice(_TITLES.split("|")).format(place) for place in make_names("place", count, taken, rng)]


def people(count: int, taken: set[str], rng: random.Random) -> list[str]:
    """Given and family names; only the given name belongs to several people."""
    given = make_names("given name", count // 4, taken, rng)
    return [f"{rng.choice(given)} {family}" for family in make_names("family name", count, taken, rng)]
