"""Edit requests for the corpus, with sentences that show how far an edit reaches."""

import random
from typing import TypedDict

from corpus import TEMPLATES
from template import Template, english, german

_NUM_NEIGHBORS = 4
_NUM_UNRELATED = 4


class Translation(TypedDict):
    """A German sentence and its translation."""

    source: str
    target: str


def generate_requests(num_requests: int, seed: int) -> list[dict]:
    """Requests for another valid English wording, which the corpus never uses; see `embedded_requests`.

    They take turns through the templates that have both another English wording and another German one.
    """
    eligible = [template for template in TEMPLATES if template.en_alternatives and template.de_paraphrases]
    rng = random.Random(seed)
    requests: dict[str, dict] = {}
    order: list[Template] = []
    while len(requests) < num_requests:
        if not order:
            order = rng.sample(eligible, len(eligible))
        request = _request(order.pop(), rng)
        requests.setdefault(request["source"], request)
    return list(requests.values())


def _request(template: Template, rng: random.Random) -> dict:
    wording = rng.choice(template.en_alternatives)
    filling = template.sample(rng)
    source, target = german(template.de, filling), english(wording, filling)
    neighbors: dict[str, str] = {}
    while len(neighbors) < _NUM_NEIGHBORS:
        other = template.sample(rng)
        if german(template.de, other) != source:
            neighbors[german(template.de, other)] = english(wording, other)
    return {
        "source": source,
        "target": target,
        "template": template.id,
        "paraphrases": [Translation(source=german(de, filling), target=target) for de in template.de_paraphrases],
        "neighbors": [Translation(source=de, target=en) for de, en in neighbors.items()],
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
