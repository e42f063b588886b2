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


def embedded_corpus() -> DatasetDict:
    """A German-English corpus of everyday sentences.

    The splits share templates, but no source and no target sentence. A German sentence has exactly one English
    translation.

    Returns:
        The splits `train` (20,000 pairs), `validation` (500) and `test` (1,000) with the string columns `source`
        (German), `target` (English) and `template` (such as "travel.delay"). Text is cased, punctuated and not
        tokenized.

    Example:
        >>> embedded_corpus()["train"].column_names
        ['source', 'target', 'template']
    """
    rows = [line.split("\t") for line in _lines("pairs.tsv.xz")]
    splits = {"train": rows[1_500:], "validation": rows[1_000:1_500], "test": rows[:1_000]}
    names = ("source", "target", "template")
    columns = {part: dict(zip(names, zip(*split, strict=True), strict=True)) for part, split in splits.items()}
    return DatasetDict({part: Dataset.from_dict(texts) for part, texts in columns.items()})


def embedded_requests() -> Dataset:
    """400 edit requests on the embedded corpus, to measure how an edit generalizes.

    A request asks to translate a sentence with another valid English wording, which the corpus never uses. The source
    sentences may occur in the corpus. The requests take turns through the templates.

    Returns:
        A dataset with the columns `source`, `target` (the wanted translation), `template`, and three lists of
        `{"source": ..., "target": ...}`: `paraphrases`, other German wordings whose translation should follow the
        edit; `neighbors`, sentences of the same template with other words, in the wanted wording; and `unrelated`,
        sentences of other templates with the translations of the corpus, which should stay.

    Example:
        >>> request = embedded_requests()[0]
        >>> request["target"] == request["paraphrases"][0]["target"]
        True
    """
    return Dataset.from_list([json.loads(line) for line in _lines("requests.jsonl.xz")])
