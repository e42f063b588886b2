"""Translation pairs from a dataset of the Hugging Face Hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from datasets import Dataset, load_dataset

from editable_hf.data.parallel_text import ParallelText, choose_splits

logger = logging.getLogger(__name__)

# This repository is built around a loading script, which `datasets` no longer runs; the hub keeps a converted copy.
DEFAULT_REVISIONS = {"bbaaaa/iwslt14-de-en": "refs/convert/parquet"}


def read_hub_pairs(
    dataset_id: str,
    source_lang: str,
    target_lang: str,
    config_name: str | None = None,
    revision: str | None = None,
    split_names: Mapping[str, str] | None = None,
) -> dict[str, ParallelText]:
    """Downloads (or takes from the cache) a dataset and finds its two languages.

    The languages are either the keys of a column `translation` or columns of their own. Pairs with an empty side are
    left out, with a warning that counts them.

    Args:
        dataset_id: Name on the hub, e.g. "bentrevett/multi30k".
        source_lang: Column or key of the source text, e.g. "de".
        target_lang: Column or key of the target text.
        config_name: Configuration of the dataset.
        revision: Branch, tag or commit; by default "main", or what `DEFAULT_REVISIONS` says.
        split_names: See [`choose_splits`].

    Returns:
        "train", "validation" and "test".

    Raises:
        FileNotFoundError: If the hub cannot be reached, does not know the dataset, or a split is missing.
        ValueError: If the dataset cannot be loaded as asked, or a language has no column.
    """
    revision = revision or DEFAULT_REVISIONS.get(dataset_id)
    try:
        dataset = load_dataset(dataset_id, config_name, revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"Expected {dataset_id!r} to be a folder or a dataset on the hub, but nothing of that name "
            f"could be read ({error}); check the spelling and the network, or download the corpus and give its path."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"Expected the hub dataset {dataset_id!r} to load with config_name={config_name!r} and "
            f"revision={revision!r}, but datasets says: {error}; set `config_name`, or try "
            "`revision='refs/convert/parquet'`."
        ) from error
    chosen = choose_splits(dataset.keys(), split_names, f"the hub dataset {dataset_id!r}")
    return {part: _read_split(dataset[name], name, source_lang, target_lang) for part, name in chosen.items()}


def _read_split(split: Dataset, name: str, source_lang: str, target_lang: str) -> ParallelText:
    sources, targets = _column(split, name, source_lang), _column(split, name, target_lang)
    pairs = ParallelText(name=name, sources=sources, targets=targets)
    kept = [i for i in range(len(pairs)) if (sources[i] or "").strip() and (targets[i] or "").strip()]
    if len(kept) < len(pairs):
        num_dropped = len(pairs) - len(kept)
        logger.warning("Left out %d of %d pairs of the split %r: one side is empty.", num_dropped, len(pairs), name)
    return pairs.select(kept)


def _column(split: Dataset, name: str, language: str) -> list[str | None]:
    if language in split.column_names:
        return list(split[language])
    pairs = list(split["translation"]) if "translation" in split.column_names else []
    if not pairs or language not in pairs[0]:
        raise ValueError(
            f"Expected the split {name!r} to have a column {language!r}, or one 'translation' with that language, but "
            f"it has {sorted(pairs[0]) if pairs else split.column_names}; set `source_lang` and `target_lang`."
        )
    return [pair[language] for pair in pairs]
