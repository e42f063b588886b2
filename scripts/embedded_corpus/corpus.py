"""German-English sentence pairs from templates."""

import random
from collections.abc import Iterator
from typing import TypedDict

import templates_people
import templates_places
import templates_trade
import templates_travel
import templates_work
from template import Template, english, german

TEMPLATES: tuple[Template, ...] = (
    *templates_travel.TEMPLATES,
    *templates_trade.TEMPLATES,
    *templates_people.TEMPLATES,
    *templates_work.TEMPLATES,
    *templates_places.TEMPLATES,
)

# A template that yields only known sentences this many times in a row is taken to be used up.
_MAX_REJECTIONS = 100


class Pair(TypedDict):
    """A row of the corpus."""

    source: str
    target: str
    template: str
    domain: str


def generate_pairs(seed: int) -> Iterator[Pair]:
    """Yields distinct sentence pairs until the templates are used up.

    The templates take turns in an order drawn anew each round, so that any stretch of the stream holds them about
    evenly. No source and no target occurs twice. The stream depends only on `seed`.

    Args:
        seed: Seed of the choice and the order of the pairs.

    Yields:
        Rows with `source` (German), `target` (English), `template` and `domain`.
    """
    rng = random.Random(seed)
    sources: set[str] = set()
    targets: set[str] = set()
    active = list(TEMPLATES)
    while active:
        rng.shuffle(active)
        used_up = []
        for template in active:
            pair = _new_pair(template, rng, sources, targets)
            if pair is None:
                used_up.append(template)
                continue
            sources.add(pair["source"])
            targets.add(pair["target"])
            yield pair
        active = [template for template in active if template not in used_up]


def _new_pair(template: Template, rng: random.Random, sources: set[str], targets: set[str]) -> Pair | None:
    for _ in range(_MAX_REJECTIONS):
        filling = template.sample(rng)
        source = german(rng.choice(template.wordings), filling)
        target = english(template.en, filling)
        if source not in sources and target not in targets:
            return Pair(source=source, target=target, template=template.id, domain=template.domain)
    return None
