"""The embedded German-English parallel corpus, generated from templates."""

import random
from collections.abc import Iterator
from typing import TypedDict

from datasets import Dataset, DatasetDict

from . import templates_people, templates_places, templates_trade, templates_travel, templates_work
from .template import Template, english, german

TEMPLATES: tuple[Template, ...] = (
    *templates_travel.TEMPLATES,
    *templates_trade.TEMPLATES,
    *templates_people.TEMPLATES,
    *templates_work.TEMPLATES,
    *templates_places.TEMPLATES,
)

# A template that yields only known sentences this many times in a row is taken to be used up.
_MAX_REJECTIONS = 100
# Larger templates could give more, but would then outweigh the small ones.
_MAX_PAIRS_PER_TEMPLATE = 2_000


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


def embedded_corpus(
    num_train: int = 20_000, num_validation: int = 500, num_test: int = 1_000, seed: int = 0
) -> DatasetDict:
    """Generates a German-English corpus of everyday sentences.

    The sentences come from templates filled with names, dates, amounts and words in the right form; nothing is
    downloaded. The result is deterministic: the same arguments give the same rows in the same order. The splits share
    templates, but no source and no target sentence. A German sentence has exactly one English translation. The test
    and the validation split do not depend on `num_train`.

    Args:
        num_train: Number of training pairs.
        num_validation: Number of validation pairs.
        num_test: Number of test pairs.
        seed: Seed of the choice and the order of the pairs.

    Returns:
        The splits `train`, `validation` and `test` with the string columns `source` (German), `target` (English),
        `template` (such as "travel.delay") and `domain`. Text is cased, punctuated and not tokenised.

    Raises:
        ValueError: If a size is not positive, or larger than the number of pairs available.

    Example:
        >>> corpus = embedded_corpus(num_train=1_000)
        >>> corpus["train"].column_names
        ['source', 'target', 'template', 'domain']
    """
    sizes = {"num_train": num_train, "num_validation": num_validation, "num_test": num_test}
    for name, size in sizes.items():
        if size <= 0:
            raise ValueError(f"Expected `{name}` to be positive, got {size}.")
    total = sum(sizes.values())
    if total > max_pairs():
        raise ValueError(
            f"Expected at most {max_pairs()} pairs in all, got {total} = num_train + num_validation + num_test. "
            "Reduce `num_train`."
        )
    stream = generate_pairs(seed)
    # The held-out splits come first, so that they stay the same when the training split grows.
    test, validation, train = (
        Dataset.from_list([next(stream) for _ in range(size)]) for size in (num_test, num_validation, num_train)
    )
    return DatasetDict(train=train, validation=validation, test=test)


def max_pairs() -> int:
    """Returns the size of the largest corpus in which no template is more than 4% of the rows."""
    # Half of the fillings, because the last ones take many draws to hit and some fill two slots with the same word.
    return sum(min(template.num_fillings // 2, _MAX_PAIRS_PER_TEMPLATE) for template in TEMPLATES)
