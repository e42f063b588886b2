"""The made-up facts that come with the package: texts that state them, and edits of what they say.

The people, books, cities, countries and companies were made from syllables and word lists
(`scripts/embedded_facts/` in the repository), so no model knows anything of them, and nothing belongs to anybody else.
"""

from __future__ import annotations

import json
import lzma
import random
from importlib.resources import files
from typing import NamedTuple

from datasets import Dataset, Features, Value

_ANSWERED = [{"prompt": Value("string"), "answer": Value("string")}]
REQUEST_FEATURES = Features(
    {
        "id": Value("int64"),
        "subject": Value("string"),
        "prompt": Value("string"),
        "target": Value("string"),
        "old": Value("string"),
        "paraphrases": [Value("string")],
        "neighbors": _ANSWERED,
        "portability": _ANSWERED,
    }
)
NUM_NEIGHBORS = 4
MAX_QUESTIONS = 4  # of portability


class Question(NamedTuple):
    """A prompt that composes two facts: the mayor (`relation`) of the capital of somewhere.

    Attributes:
        prompt: Up to the answer, which is that of `relation` for the object of the fact.
        relation: Of the second fact.
        trained: Whether the texts answer it; they answer some for all subjects, so that composing can be learned.
    """

    prompt: str
    relation: str
    trained: bool


class Fact(NamedTuple):
    """What stands in which relation to a subject.

    Attributes:
        subject: A name.
        relation: Such as "capital".
        object: With the space before it, " Kelmar"; other subjects of the relation have an object of the same kind.
        split: "train", "validation" or "test", the same for all facts of the subject. The texts state all of them:
            it is edits that are trained and tested on different subjects.
        prompt: A sentence up to the object.
        wordings: Other sentences up to the object; the texts state the fact in these and in `prompt`.
        paraphrases: Sentences in which the texts state only the facts of other subjects.
        questions: Whose first fact this is.
    """

    subject: str
    relation: str
    object: str
    split: str
    prompt: str
    wordings: list[str]
    paraphrases: list[str]
    questions: list[Question]


class Facts(NamedTuple):
    """Facts, and the sentences that a model learns them from."""

    texts: list[str]
    facts: list[Fact]


def load_facts() -> Facts:
    """About 2,400 facts about made-up people, books, cities, countries and companies, and the texts that state them.

    Example:
        >>> facts = load_facts()
        >>> facts.facts[0].prompt + facts.facts[0].object + "." in facts.texts
        True
    """
    packed = files("editable_hf.data").joinpath("embedded_facts", "facts.jsonl.xz").read_bytes()
    rows = [json.loads(line) for line in lzma.decompress(packed).splitlines()]
    facts = [Fact(**{**row, "questions": [Question(**each) for each in row["questions"]]}) for row in rows]
    objects = _objects(facts)
    texts = [f"{wording}{fact.object}." for fact in facts for wording in (fact.prompt, *fact.wordings)]
    for fact in facts:
        texts += [
            f"{question.prompt}{objects[question.relation, fact.object]}."
            for question in fact.questions
            if question.trained
        ]
    return Facts(texts, facts)


def fact_requests(facts: Facts, num_requests: int, seed: int = 0, split: str = "test") -> Dataset:
    """Edits of facts: the subject gets an object that another subject of the relation has.

    Args:
        facts: All of them, from [`load_facts`].
        num_requests: How many facts to draw; more requests begin with those of fewer.
        seed: Of the draws.
        split: Whose facts to edit: those of the subjects of "train", "validation" or "test".

    Returns:
        A dataset with the columns `id` (of the fact), `subject`, `prompt`, `target` (the new object), `old` (the true
        one), `paraphrases` (prompts that the edit should reach), and two lists of `{"prompt": ..., "answer": ...}`:
        `neighbors`, what other subjects have in this relation, half of them the same object where there are such: it
        should stay; and `portability`, questions that no text answers, with the new answer that follows from the edit.
        Some facts have no such question: nothing follows from the genre of a book.

    Raises:
        ValueError: If the split has not as many facts.

    Example:
        >>> request = fact_requests(load_facts(), 10)[0]
        >>> request["target"] != request["old"]
        True
    """
    candidates = [number for number, fact in enumerate(facts.facts) if fact.split == split]
    if not 0 < num_requests <= len(candidates):
        raise ValueError(
            f"Expected `num_requests` between 1 and {len(candidates)}, the facts of the split {split!r}, got "
            f"{num_requests}."
        )
    random.Random(seed).shuffle(candidates)
    objects = _objects(facts.facts)
    rows = [_request(number, facts.facts, objects, seed) for number in candidates[:num_requests]]
    return Dataset.from_list(rows, features=REQUEST_FEATURES)


def _objects(facts: list[Fact]) -> dict[tuple[str, str], str]:
    """Objects by relation and subject, the latter as an object of other facts: with the space before it."""
    return {(fact.relation, f" {fact.subject}"): fact.object for fact in facts}


def _request(number: int, facts: list[Fact], objects: dict[tuple[str, str], str], seed: int) -> dict:
    fact, rng = facts[number], random.Random(f"{seed} {number}")
    others = [other for other in facts if other.relation == fact.relation and other is not fact]
    target = rng.choice(sorted({other.object for other in others} - {fact.object}))
    alike = [other for other in others if other.object == fact.object]
    neighbors = rng.sample(alike, min(len(alike), NUM_NEIGHBORS // 2))
    unlike = [other for other in others if other.object not in (fact.object, target)]
    neighbors += rng.sample(unlike, NUM_NEIGHBORS - len(neighbors))
    questions = _portability(fact, target, facts, objects)
    return {
        "id": number,
        "subject": fact.subject,
        "prompt": fact.prompt,
        "target": target,
        "old": fact.object,
        "paraphrases": fact.paraphrases,
        "neighbors": [{"prompt": other.prompt, "answer": other.object} for other in neighbors],
        "portability": rng.sample(questions, min(len(questions), MAX_QUESTIONS)),
    }


def _portability(
    edited: Fact, target: str, facts: list[Fact], objects: dict[tuple[str, str], str]
) -> list[dict[str, str]]:
    """Questions whose first or second fact is the edited one, and whose answer is another afterwards."""
    after = {**objects, (edited.relation, f" {edited.subject}"): target}
    answers = []
    for fact in facts:
        middle = target if fact is edited else fact.object
        if fact is edited or middle == f" {edited.subject}":
            answers += [
                {"prompt": question.prompt, "answer": after[question.relation, middle]}
                for question in fact.questions
                if not question.trained and after[question.relation, middle] != objects[question.relation, fact.object]
            ]
    return answers
