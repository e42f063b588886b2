"""Edit requests for the embedded corpus, with sentences that show how far an edit reaches."""

import random
from typing import TypedDict

from datasets import Dataset

from .corpus import TEMPLATES
from .template import Template, english, german

_NUM_NEIGHBOURS = 4
_NUM_UNRELATED = 4


class Translation(TypedDict):
    """A German sentence and its translation."""

    source: str
    target: str


def embedded_requests(num_requests: int = 100, seed: int = 0) -> Dataset:
    """Generates edit requests on the embedded corpus, to measure how an edit generalises.

    A request asks to translate a sentence of the corpus with another valid English wording, which the corpus never
    uses. The result is deterministic: the same arguments give the same rows in the same order. The source sentences
    may occur in the corpus.

    Args:
        num_requests: Number of requests; they take turns through the templates that have both another English wording
            and another German one.
        seed: Seed of the choice of templates and words.

    Returns:
        A dataset with the columns `source`, `target` (the wanted translation), `template`, and three lists of
        `{"source": ..., "target": ...}`: `paraphrases`, other German wordings whose translation should follow the
        edit; `neighbours`, sentences of the same template with other words, in the wanted wording; and `unrelated`,
        sentences of other templates with the translations of the corpus, which should stay.

    Raises:
        ValueError: If `num_requests` is not positive, or larger than the number of distinct requests available.

    Example:
        >>> request = embedded_requests(num_requests=10)[0]
        >>> request["target"] == request["paraphrases"][0]["target"]
        True
    """
    eligible = [template for template in TEMPLATES if template.en_alternatives and template.de_paraphrases]
    available = len(eligible) * min(template.num_fillings for template in eligible) // 2
    if not 0 < num_requests <= available:
        raise ValueError(f"Expected `num_requests` between 1 and {available}, got {num_requests}.")
    rng = random.Random(seed)
    requests: dict[str, dict] = {}
    order: list[Template] = []
    while len(requests) < num_requests:
        if not order:
            order = rng.sample(eligible, len(eligible))
        request = _request(order.pop(), rng)
        requests.setdefault(request["source"], request)
    return Dataset.from_list(list(requests.values()))


def _request(template: Template, rng: random.Random) -> dict:
    wording = rng.choice(template.en_alternatives)
    filling = template.sample(rng)
    source, target = german(template.de, filling), english(wording, filling)
    neighbours: dict[str, str] = {}
    while len(neighbours) < _NUM_NEIGHBOURS:
        other = template.sample(rng)
        if german(template.de, other) != source:
            neighbours[german(template.de, other)] = english(wording, other)
    return {
        "source": source,
        "target": target,
        "template": template.id,
        "paraphrases": [Translation(source=german(de, filling), target=target) for de in template.de_paraphrases],
        "neighbours": [Translation(source=de, target=en) for de, en in neighbours.items()],
        "unrelated": _unrelated(template, rng),
    }


def _unrelated(template: Template, rng: random.Random) -> list[Translation]:
    """Pairs of templates of other domains, as the corpus has them."""
    others = [other for other in TEMPLATES if other.domain != template.domain]
    pairs = []
    for other in rng.sample(others, _NUM_UNRELATED):
        filling = other.sample(rng)
        pairs.append(Translation(source=german(other.de, filling), target=english(other.en, filling)))
    return pairs
