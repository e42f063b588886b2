"""Writes the made-up facts that the package ships, `editable_hf/data/embedded_facts/facts.jsonl.xz`, anew.

python scripts/embedded_facts/generate_facts.py
"""

from __future__ import annotations

import json
import lzma
import random
from pathlib import Path

from names import WORDS, book_titles, make_names, people
from relations import RELATIONS

FILE = Path(__file__).resolve().parents[2] / "editable_hf/data/embedded_facts/facts.jsonl.xz"
SUBJECTS = {"person": 240, "book": 220, "city": 120, "country": 40, "company": 100}
OBJECTS = {"river": 30, "currency": 20, "language": 16}
NUM_FAMOUS = 60  # people who are mayors, authors or founders
NUM_PARAPHRASES = 2
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}
SHARE_OF_TRAINED_QUESTIONS = 0.6


def generate_facts(seed: int) -> list[dict]:
    """Facts in the order of their relations; see `editable_hf.data.facts.Fact` for the fields."""
    rng = random.Random(seed)
    taken: set[str] = set()
    things = {kind: make_names(kind, SUBJECTS[kind], taken, rng) for kind in ("country", "city", "company")}
    things |= {kind: make_names(kind, count, taken, rng) for kind, count in OBJECTS.items()}
    things |= {
        "person": people(SUBJECTS["person"], taken, rng),
        "book": book_titles(SUBJECTS["book"], taken, rng),
        **WORDS,
    }
    split = {subject: name for kind in SUBJECTS for subject, name in _splits(things[kind], rng).items()}
    objects = {name: _objects(name, things, rng) for name in RELATIONS}
    return [
        _fact(name, subject, objects[name][subject], split[subject], rng)
        for name, relation in RELATIONS.items()
        for subject in things[relation.subject]
    ]


def _splits(subjects: list[str], rng: random.Random) -> dict[str, str]:
    numbers = [round(share * len(subjects)) for share in SHARES.values()]
    names = [name for name, number in zip(SHARES, numbers, strict=True) for _ in range(number)]
    return dict(zip(rng.sample(subjects, len(subjects)), names, strict=True))


def _objects(name: str, things: dict[str, list[str]], rng: random.Random) -> dict[str, str]:
    """The object of each subject of a relation; every country gets as many cities, and its first is the capital."""
    subjects, objects = things[RELATIONS[name].subject], things[RELATIONS[name].object]
    if name == "country":
        return {city: objects[index % len(objects)] for index, city in enumerate(subjects)}
    if name == "capital":
        return dict(zip(subjects, objects, strict=False))
    if RELATIONS[name].object == "person":
        objects = rng.sample(objects, NUM_FAMOUS)
    even = [objects[index % len(objects)] for index in range(len(subjects))]
    return dict(zip(subjects, rng.sample(even, len(even)), strict=True))


def _fact(name: str, subject: str, answer: str, split: str, rng: random.Random) -> dict:
    relation = RELATIONS[name]
    prompt, *others = (wording.format(subject) for wording in relation.wordings)
    rng.shuffle(others)
    questions = [
        {
            "prompt": _capitalized(second.wordings[0].format(relation.phrase.format(subject))),
            "relation": other,
            "trained": rng.random() < SHARE_OF_TRAINED_QUESTIONS,
        }
        for other, second in RELATIONS.items()
        if second.subject == relation.object and (name, other) != ("capital", "country")  # back where it began
    ]
    return {
        "subject": subject,
        "relation": name,
        "object": f" {answer}",
        "split": split,
        "prompt": prompt,
        "wordings": others[NUM_PARAPHRASES:],
        "paraphrases": others[:NUM_PARAPHRASES],
        "questions": questions,
    }


def _capitalized(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def facts_text() -> str:
    """A JSON object for each fact."""
    return "".join(json.dumps(fact) + "\n" for fact in generate_facts(seed=0))


def main() -> None:
    FILE.parent.mkdir(exist_ok=True)
    text = facts_text()
    content = lzma.compress(text.encode(), preset=9)
    FILE.write_bytes(content)
    print(f"{FILE}: {text.count(chr(10)):,} facts, {len(content):,} bytes")


if __name__ == "__main__":
    main()
