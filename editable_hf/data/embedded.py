"""The corpus that comes with the package: German-English sentences, and edit requests for them.

The sentences were made from templates (`scripts/embedded_corpus/` in the repository), so nothing is downloaded and
nothing belongs to anybody else.
"""

from __future__ import annotations

import json
import lzma
from importlib.resources import files

from datasets import Dataset, DatasetDict


def _lines(name: str) -> list[str]:
    packed = files("editable_hf.data").joinpath("embedded_corpus", name).read_bytes()
    return lzma.decompress(packed).decode().splitlines()


def embedded_corpus(num_train: int = 20_000, num_validation: int = 500, num_test: int = 1_000) -> DatasetDict:
    """A German-English corpus of everyday sentences.

    The splits share templates, but no source and no target sentence. A German sentence has exactly one English
    translation. The test split does not depend on the other sizes, and the validation split not on `num_train`.

    Args:
        num_train: Number of training pairs.
        num_validation: Number of validation pairs.
        num_test: Number of test pairs.

    Returns:
        The splits `train`, `validation` and `test` with the string columns `source` (German), `target` (English),
        `template` (such as "travel.delay") and `domain`. Text is cased, punctuated and not tokenized.

    Raises:
        ValueError: If a size is not positive, or there are not as many pairs.

    Example:
        >>> corpus = embedded_corpus(num_train=1_000)
        >>> corpus["train"].column_names
        ['source', 'target', 'template', 'domain']
    """
    sizes = {"num_test": num_test, "num_validation": num_validation, "num_train": num_train}
    for name, size in sizes.items():
        if size <= 0:
            raise ValueError(f"Expected `{name}` to be positive, got {size}.")
    lines, total = _lines("pairs.tsv.xz"), sum(sizes.values())
    if total > len(lines):
        raise ValueError(
            f"Expected at most {len(lines)} pairs in all, got {total} = num_train + num_validation + num_test. "
            "Reduce `num_train`."
        )
    splits, first = {}, 0
    for name, size in sizes.items():
        source, target, template = zip(*(line.split("\t") for line in lines[first : first + size]), strict=True)
        domain = [each.split(".")[0] for each in template]
        columns = {"source": source, "target": target, "template": template, "domain": domain}
        splits[name.removeprefix("num_")], first = Dataset.from_dict(columns), first + size
    return DatasetDict({name: splits[name] for name in ("train", "validation", "test")})


def embedded_requests(num_requests: int = 100) -> Dataset:
    """Edit requests on the embedded corpus, to measure how an edit generalizes.

    A request asks to translate a sentence with another valid English wording, which the corpus never uses. The source
    sentences may occur in the corpus.

    Args:
        num_requests: How many; they take turns through the templates.

    Returns:
        A dataset with the columns `source`, `target` (the wanted translation), `template`, and three lists of
        `{"source": ..., "target": ...}`: `paraphrases`, other German wordings whose translation should follow the
        edit; `neighbors`, sentences of the same template with other words, in the wanted wording; and `unrelated`,
        sentences of other templates with the translations of the corpus, which should stay.

    Raises:
        ValueError: If `num_requests` is not positive, or there are not as many.

    Example:
        >>> request = embedded_requests(num_requests=10)[0]
        >>> request["target"] == request["paraphrases"][0]["target"]
        True
    """
    lines = _lines("requests.jsonl.xz")
    if not 0 < num_requests <= len(lines):
        raise ValueError(f"Expected `num_requests` between 1 and {len(lines)}, got {num_requests}.")
    return Dataset.from_list([json.loads(line) for line in lines[:num_requests]])
