"""Translation corpora in one form, whatever they were stored as."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from editable_hf.data.embedded import embedded_corpus
from editable_hf.data.hub_pairs import read_hub_pairs
from editable_hf.data.moses import MosesPreprocessor, looks_tokenized
from editable_hf.data.parallel_folder import is_parallel_folder, read_parallel_folder
from editable_hf.data.parallel_text import ParallelText
from editable_hf.data.wit3 import is_wit3, read_wit3

EMBEDDED = "embedded"

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

# SHA-256 of the tokenized German and English test files. A BLEU score compares with the paper's only on this test set,
# which some copies of the corpus lack, so it is recognized by content and not by the name of a folder.
_KNOWN_TEST_SETS = {
    frozenset(
        {
            "e718c783e33160b7d72af8f733756a466e0d0c016eff8ab624c1b0d1d01cbbdf",
            "4b127beb9050511a3e6209cd837ff36f623a3a423666b32aba6e208b7330cf4c",
        }
    ): "IWSLT14"
}


@dataclass(frozen=True)
class TranslationData:
    """A parallel corpus, ready to train and to score on.

    Attributes:
        splits: "train", "validation" and "test". Columns: `source` and `target`, the text that the model sees
            (Moses-tokenized and lower-cased, tokens separated by spaces), and `target_text`, the reference of
            detokenized BLEU (the raw text where the corpus has it, else the target detokenized).
        name: The corpus, e.g. "IWSLT14 De-En, folder iwslt14_de_en".
        test_name: The test set that is scored, with its number of pairs, for reports.
    """

    splits: DatasetDict
    name: str
    test_name: str


def load_translation_data(
    source: str,
    *,
    source_lang: str = "de",
    target_lang: str = "en",
    config_name: str | None = None,
    revision: str | None = None,
    split_names: Mapping[str, str] | None = None,
    tokenized: bool | None = None,
    raw_text: bool = False,
    max_train_samples: int | None = None,
    max_validation_samples: int | None = None,
    max_test_samples: int | None = None,
    seed: int = 0,
) -> TranslationData:
    """Loads IWSLT14, Multi30k or another parallel corpus for the translation experiment (section 4.4).

    Text that is not Moses-tokenized yet is tokenized as fairseq does; text that is passes unchanged, except that it
    is lower-cased.

    Args:
        source: One of: "embedded", the small corpus inside this package; a folder with `train.de`, `train.en`,
            `valid.de` and so on (fairseq's `tmp` folder, Multi30k's raw folder; files plain, `.gz` or `.xz`); the
            folder unpacked from WIT3's `de-en.tgz`; the id of a dataset on the hub.
        source_lang: Language to translate from, as file ending or column name.
        target_lang: Language to translate into.
        config_name: Configuration, for a hub dataset only.
        revision: Branch, tag or commit, for a hub dataset only.
        split_names: Which split plays which part, e.g. `{"train": "train_subset"}`; for folders and hub datasets.
        tokenized: Whether the text is Moses-tokenized; `None` recognizes it. WIT3's release is always raw.
        raw_text: Leave the text as it is, for models trained on plain text: `target` and `target_text` are the same.
        max_train_samples: Upper limit on training pairs. A random sample is taken, in the corpus' order.
        max_validation_samples: Same for validation.
        max_test_samples: Same for test; `test_name` says so.
        seed: Decides the samples.

    Returns:
        The corpus; the same arguments give the same pairs.

    Raises:
        FileNotFoundError: If `source`, a split or a file of it cannot be found.
        ValueError: If a file is damaged, misaligned or not UTF-8, or it cannot be told whether text is tokenized.
    """
    options = (config_name, revision, split_names, tokenized)
    pairs, origin, tokenized = _read_pairs(source, source_lang, target_lang, *options)
    if tokenized is None and not raw_text:
        tokenized = _recognize_tokenized(pairs, source)
    limits = {"train": max_train_samples, "validation": max_validation_samples, "test": max_test_samples}
    samples = {part: _sample(text, limits[part], seed) for part, text in pairs.items()}
    if raw_text:
        splits = DatasetDict({part: _as_it_is(text) for part, text in samples.items()})
    else:
        splits = _tokenize(samples, tokenized, MosesPreprocessor(source_lang), MosesPreprocessor(target_lang))
    corpus = _corpus_of_test_set(pairs["test"]) if tokenized else None
    name = f"{corpus or ''} {source_lang.capitalize()}-{target_lang.capitalize()}, {origin}".strip()
    return TranslationData(splits, name, _test_name(pairs["test"], len(splits["test"]), origin, corpus))


def _read_pairs(
    source: str,
    source_lang: str,
    target_lang: str,
    config_name: str | None,
    revision: str | None,
    split_names: Mapping[str, str] | None,
    tokenized: bool | None,
) -> tuple[dict[str, ParallelText], str, bool | None]:
    # Returns the splits, where they come from in words, and whether they are tokenized as far as that is known.
    path = Path(source).expanduser()
    if source == EMBEDDED:
        return _read_embedded(source_lang, target_lang), "embedded corpus", tokenized
    if path.is_dir() and is_parallel_folder(path, source_lang, target_lang, split_names):
        pairs = read_parallel_folder(path, source_lang, target_lang, split_names)
        return pairs, f"folder {path.resolve().name}", tokenized
    if path.is_dir() and is_wit3(path, source_lang, target_lang):
        return read_wit3(path, source_lang, target_lang), f"WIT3 release {path.resolve().name}", True
    if path.is_dir():
        raise FileNotFoundError(
            f"Expected the folder {source} to hold train.{source_lang} and train.{target_lang} (or .gz, .xz), or "
            f"WIT3's train.tags files, but it has {_listing(path)}; check the path, the languages and `split_names`."
        )
    if path.is_file() or not _HUB_ID.fullmatch(source) or source.startswith("."):
        raise FileNotFoundError(
            f"Expected a folder, a hub dataset or {EMBEDDED!r}, but {source!r} is none; check the path, and unpack an "
            "archive first (`tar -xzf de-en.tgz`)."
        )
    pairs = read_hub_pairs(source, source_lang, target_lang, config_name, revision, split_names)
    return pairs, f"hub dataset {source}", tokenized


def _read_embedded(source_lang: str, target_lang: str) -> dict[str, ParallelText]:
    if (source_lang, target_lang) != ("de", "en"):
        raise ValueError(
            f"Expected 'de' to 'en' for the embedded corpus, but got {source_lang!r} to {target_lang!r}; leave "
            "`source_lang` and `target_lang` at their defaults."
        )
    corpus = embedded_corpus()
    return {part: ParallelText(part, split["source"][:], split["target"][:]) for part, split in corpus.items()}


def _recognize_tokenized(pairs: Mapping[str, ParallelText], source: str) -> bool:
    verdicts = {part: looks_tokenized([*text.sources, *text.targets]) for part, text in pairs.items()}
    if len(set(verdicts.values())) > 1:
        words = ", ".join(f"{part} {'tokenized' if verdict else 'raw'}" for part, verdict in verdicts.items())
        raise ValueError(
            f"Expected all of {source} to be Moses-tokenized or all of it raw, but it looks mixed ({words}); prepare "
            "the splits in the same way, or say which it is with `tokenized=True` or `tokenized=False`."
        )
    return verdicts["train"]


def _sample(text: ParallelText, limit: int | None, seed: int) -> ParallelText:
    if limit is None or limit >= len(text):
        return text
    if limit < 1:
        raise ValueError(
            f"A split needs at least one pair, but the limit for {text.name!r} is {limit}; raise `max_train_samples`, "
            "`max_validation_samples` or `max_test_samples`, or leave it out for all pairs."
        )
    return text.select(sorted(random.Random(seed).sample(range(len(text)), limit)))


def _as_it_is(text: ParallelText) -> Dataset:
    target_texts = text.target_texts or text.targets
    return Dataset.from_dict({"source": text.sources, "target": target_texts, "target_text": target_texts})


def _tokenize(
    texts: Mapping[str, ParallelText],
    tokenized: bool,
    source_moses: MosesPreprocessor,
    target_moses: MosesPreprocessor,
) -> DatasetDict:
    splits = DatasetDict()
    for part, text in texts.items():
        if tokenized:
            sources, targets = [line.lower() for line in text.sources], [line.lower() for line in text.targets]
            target_texts = text.target_texts or [target_moses.detokenize(line) for line in targets]
        else:
            bar = tqdm(zip(text.sources, text.targets, strict=True), f"Tokenizing {part}", len(text), leave=False)
            tokens = [(source_moses.tokenize(source), target_moses.tokenize(target)) for source, target in bar]
            sources, targets = [source for source, _ in tokens], [target for _, target in tokens]
            target_texts = text.target_texts or text.targets
        splits[part] = Dataset.from_dict({"source": sources, "target": targets, "target_text": target_texts})
    return splits


def _corpus_of_test_set(test: ParallelText) -> str | None:
    return _KNOWN_TEST_SETS.get(frozenset({_sha256(test.sources), _sha256(test.targets)}))


def _test_name(test: ParallelText, num_pairs: int, origin: str, corpus: str | None) -> str:
    count = f"{num_pairs:,} pairs" if num_pairs == len(test) else f"{num_pairs:,} sampled of {len(test):,} pairs"
    if corpus:
        return f"{corpus} test set as in fairseq's preparation ({count})"
    return f"{test.name} of the {origin} ({count})"


def _sha256(lines: Sequence[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "no files"


def describe_source(source: str) -> dict[str, object]:
    """What `load_translation_data` would read from disk: file names and sizes, empty for a hub id or "embedded".

    For deciding whether something that was made from the data is still up to date.
    """
    path = Path(source).expanduser()
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return {"files": {file.name: file.stat().st_size for file in files if file.is_file()}}
