"""WIT3's own release of IWSLT14, cleaned and split as fairseq's prepare-iwslt14.sh does it.

For German-English this gives 160,239 training, 7,283 validation and 6,750 test pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from editable_hf.data.moses import MosesPreprocessor
from editable_hf.data.parallel_text import ParallelText, check_no_empty_lines, check_same_length
from editable_hf.data.text_lines import read_lines

# fairseq's test set is these five, in this order.
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
MAX_TOKENS = 175
MAX_LENGTH_RATIO = 1.5
VALIDATION_EVERY = 23

_MAX_WORD_CHARACTERS = 1000

_METADATA_LINE = re.compile(r"<url>|<talkid>|<keywords>")
_METADATA_TAG = re.compile(r"</?(?:title|description)>")
_SEGMENT_OPEN = re.compile(r'<seg id="[0-9]*">\s*')
_SEGMENT_CLOSE = re.compile(r"\s*</seg>\s*")


def is_wit3(folder: Path, source_lang: str, target_lang: str) -> bool:
    """Whether `folder`, or the subfolder named after the language pair in it, holds WIT3's training files."""
    return _release(folder, source_lang, target_lang) is not None


def read_wit3(folder: Path, source_lang: str = "de", target_lang: str = "en") -> dict[str, ParallelText]:
    """Reads, tokenizes, cleans and splits WIT3's release; about a minute for the whole of it.

    Args:
        folder: Unpacked from `de-en.tgz`, or the one around it; see [`is_wit3`].
        source_lang: Language to translate from. The release of either direction will do.
        target_lang: Language to translate into.

    Returns:
        "train", "validation" and "test": Moses-tokenized and lower-cased, with the raw target in `target_texts`.

    Raises:
        FileNotFoundError: If a file of the release is missing.
        ValueError: If a file is not UTF-8, or languages are not aligned.
    """
    folder, pair = _release(folder, source_lang, target_lang)
    train, validation = _training_splits(folder, pair, source_lang, target_lang)
    return {"train": train, "validation": validation, "test": _test_split(folder, pair, source_lang, target_lang)}


def is_clean_pair(source: str, target: str) -> bool:
    """Whether Moses' clean-corpus-n.perl with `-ratio 1.5` and the limits 1 and 175 keeps a tokenized pair."""
    num_source, num_target = len(source.split()), len(target.split())
    return (
        0 < num_source <= MAX_TOKENS
        and 0 < num_target <= MAX_TOKENS
        and max(num_source, num_target) / min(num_source, num_target) <= MAX_LENGTH_RATIO
        and all(len(word) <= _MAX_WORD_CHARACTERS for word in (*source.split(), *target.split()))
    )


def _training_splits(folder: Path, pair: str, source_lang: str, target_lang: str) -> tuple[ParallelText, ParallelText]:
    names = [f"train.tags.{pair}.{language}" for language in (source_lang, target_lang)]
    sources, targets = (_training_lines(folder / name) for name in names)
    check_same_length(sources, targets, *(f"{name} (without its lines of tags)" for name in names))
    source_tokens, target_tokens = _tokenize(sources, source_lang), _tokenize(targets, target_lang)
    clean = [i for i in range(len(sources)) if is_clean_pair(source_tokens[i], target_tokens[i])]
    whole = ParallelText("train.tags", source_tokens, target_tokens, targets)
    is_validation = [number % VALIDATION_EVERY == 0 for number in range(1, len(clean) + 1)]
    train = whole.select([i for i, held_out in zip(clean, is_validation, strict=True) if not held_out])
    return train, whole.select([i for i, held_out in zip(clean, is_validation, strict=True) if held_out])


def _test_split(folder: Path, pair: str, source_lang: str, target_lang: str) -> ParallelText:
    sources: list[str] = []
    targets: list[str] = []
    for test_set in TEST_SETS:
        paths = [folder / f"IWSLT14.{test_set}.{pair}.{language}.xml" for language in (source_lang, target_lang)]
        source, target = map(_segments, paths)
        check_same_length(source, target, *map(str, paths))
        sources, targets = sources + source, targets + target
    plain = [text.replace("’", "'") for text in sources], [text.replace("’", "'") for text in targets]
    return ParallelText("test", _tokenize(plain[0], source_lang), _tokenize(plain[1], target_lang), targets)


def _training_lines(path: Path) -> list[str]:
    lines = (line for line in read_lines(path) if not _METADATA_LINE.search(line))
    return [_METADATA_TAG.sub("", line).strip() for line in lines]


def _segments(path: Path) -> list[str]:
    # Line by line and not with an XML parser: that is how the reference test set was made (`&amp;` stays `&amp;`),
    # and no entity is ever expanded.
    lines = [line for line in read_lines(path) if "<seg id" in line]
    texts = [_SEGMENT_CLOSE.sub("", _SEGMENT_OPEN.sub("", line)).strip() for line in lines]
    check_no_empty_lines(texts, f"the segments of {path}")
    return texts


def _tokenize(texts: Sequence[str], language: str) -> list[str]:
    preprocessor = MosesPreprocessor(language)
    return [preprocessor.tokenize(text) for text in tqdm(texts, f"Tokenizing {language}", leave=False)]


def _release(folder: Path, source_lang: str, target_lang: str) -> tuple[Path, str] | None:
    """The folder with the files of a release, and the pair of languages in their names."""
    for pair in (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}"):
        for place in (folder, folder / pair):
            if (place / f"train.tags.{pair}.{source_lang}").is_file():
                return place, pair
    return None
