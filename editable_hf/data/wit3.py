"""WIT3's own release of IWSLT14, cleaned and split as fairseq's prepare-iwslt14.sh does it.

For German-English this gives 160,239 training, 7,283 validation and 6,750 test pairs.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm.auto import tqdm

from editable_hf.data.moses import MosesPreprocessor
from editable_hf.data.parallel_text import ParallelText, check_no_empty_lines, check_same_length
from editable_hf.data.text_lines import decode_lines

# fairseq's test set is these five, in this order.
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
MAX_TOKENS = 175
MAX_LENGTH_RATIO = 1.5
VALIDATION_EVERY = 23

# The files of the release have some 60 MB together; an archive far beyond that is not WIT3's.
MAX_ARCHIVE_BYTES = 2**30
MAX_HEADER_BYTES = 2**20
# RuntimeError: zipfile's for a password and for methods that it does not know, tarfile's for headers of headers.
# ValueError: numbers of any kind in headers.
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, OverflowError, RuntimeError, ValueError),
)
_MAX_WORD_CHARACTERS = 1000

_METADATA_LINE = re.compile(r"<url>|<talkid>|<keywords>")
_METADATA_TAG = re.compile(r"</?(?:title|description)>")
_SEGMENT_OPEN = re.compile(r'<seg id="[0-9]*">\s*')
_SEGMENT_CLOSE = re.compile(r"\s*</seg>\s*")


def is_wit3(folder: Path, source_lang: str, target_lang: str) -> bool:
    """Whether `folder`, or the subfolder named after the language pair in it, holds WIT3's training files."""
    return _unpacked_folder(folder, source_lang, target_lang) is not None


def read_wit3(path: Path, source_lang: str = "de", target_lang: str = "en") -> dict[str, ParallelText]:
    """Reads, tokenizes, cleans and splits WIT3's release; about a minute for the whole of it.

    An archive is never unpacked to disk: the files needed are found by their base names and read into memory, and
    links and other special members are passed over.

    Args:
        path: `de-en.tgz` (also `.tar`, `.tar.gz`, `.zip`), or the folder unpacked from it.
        source_lang: Language to translate from. The release of either direction will do.
        target_lang: Language to translate into.

    Returns:
        "train", "validation" and "test": Moses-tokenized and lower-cased, with the raw target in `target_texts`.

    Raises:
        FileNotFoundError: If a file of the release is missing.
        ValueError: If the archive is damaged or unreasonable, a file is not UTF-8, or languages are not aligned.
    """
    if path.is_dir():
        folder = _unpacked_folder(path, source_lang, target_lang) or path
        # Only these names are ever read, so that a stray huge file beside them costs nothing.
        wanted = [child for child in folder.iterdir() if child.is_file() and _wanted(child.name)]
        files = {child.name: child.read_bytes() for child in wanted}
    else:
        files = _read_archive(path)
    pair = _pair_name(files, source_lang, target_lang, path)
    train, validation = _training_splits(files, pair, source_lang, target_lang, path)
    return {
        "train": train,
        "validation": validation,
        "test": _test_split(files, pair, source_lang, target_lang, path),
    }


def is_clean_pair(source: str, target: str) -> bool:
    """Whether Moses' clean-corpus-n.perl with `-ratio 1.5` and the limits 1 and 175 keeps a tokenized pair."""
    num_source, num_target = len(source.split()), len(target.split())
    return (
        0 < num_source <= MAX_TOKENS
        and 0 < num_target <= MAX_TOKENS
        and max(num_source, num_target) / min(num_source, num_target) <= MAX_LENGTH_RATIO
        and all(len(word) <= _MAX_WORD_CHARACTERS for word in (*source.split(), *target.split()))
    )


def _training_splits(
    files: Mapping[str, bytes], pair: str, source_lang: str, target_lang: str, path: Path
) -> tuple[ParallelText, ParallelText]:
    names = [f"train.tags.{pair}.{language}" for language in (source_lang, target_lang)]
    sources, targets = (_training_lines(_get(files, name, path), name) for name in names)
    check_same_length(sources, targets, *(f"{name} (without its lines of tags)" for name in names))
    source_tokens, target_tokens = _tokenize(sources, source_lang), _tokenize(targets, target_lang)
    clean = [i for i in range(len(sources)) if is_clean_pair(source_tokens[i], target_tokens[i])]
    whole = ParallelText("train.tags", source_tokens, target_tokens, targets)
    is_validation = [number % VALIDATION_EVERY == 0 for number in range(1, len(clean) + 1)]
    train = whole.select([i for i, held_out in zip(clean, is_validation, strict=True) if not held_out])
    return train, whole.select([i for i, held_out in zip(clean, is_validation, strict=True) if held_out])


def _test_split(files: Mapping[str, bytes], pair: str, source_lang: str, target_lang: str, path: Path) -> ParallelText:
    sources: list[str] = []
    targets: list[str] = []
    for test_set in TEST_SETS:
        names = [f"IWSLT14.{test_set}.{pair}.{language}.xml" for language in (source_lang, target_lang)]
        source, target = (_segments(_get(files, name, path), name) for name in names)
        check_same_length(source, target, *names)
        sources, targets = sources + source, targets + target
    plain = [text.replace("’", "'") for text in sources], [text.replace("’", "'") for text in targets]
    return ParallelText("test", _tokenize(plain[0], source_lang), _tokenize(plain[1], target_lang), targets)


def _training_lines(data: bytes, name: str) -> list[str]:
    lines = (line for line in decode_lines(data, name) if not _METADATA_LINE.search(line))
    return [_METADATA_TAG.sub("", line).strip() for line in lines]


def _segments(data: bytes, name: str) -> list[str]:
    # Line by line and not with an XML parser: that is how the reference test set was made (`&amp;` stays `&amp;`),
    # and no entity is ever expanded.
    lines = [line for line in decode_lines(data, name) if "<seg id" in line]
    texts = [_SEGMENT_CLOSE.sub("", _SEGMENT_OPEN.sub("", line)).strip() for line in lines]
    check_no_empty_lines(texts, f"the segments of {name}")
    return texts


def _tokenize(texts: Sequence[str], language: str) -> list[str]:
    preprocessor = MosesPreprocessor(language)
    return [preprocessor.tokenize(text) for text in tqdm(texts, f"Tokenizing {language}", leave=False)]


def _wanted(name: str) -> bool:
    return name.startswith("train.tags.") or (name.startswith("IWSLT14.TED") and name.endswith(".xml"))


def _unpacked_folder(folder: Path, source_lang: str, target_lang: str) -> Path | None:
    for pair in (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}"):
        for place in (folder, folder / pair):
            if (place / f"train.tags.{pair}.{source_lang}").is_file():
                return place
    return None


def _pair_name(files: Mapping[str, bytes], source_lang: str, target_lang: str, path: Path) -> str:
    pairs = (f"{source_lang}-{target_lang}", f"{target_lang}-{source_lang}")
    for pair in pairs:
        if f"train.tags.{pair}.{source_lang}" in files:
            return pair
    raise FileNotFoundError(
        f"Expected train.tags.{pairs[0]}.{source_lang} in {path}, but of WIT3's files it has "
        f"{', '.join(sorted(files)) or 'none'}; give the release of one language pair, e.g. {pairs[0]}.tgz (WIT3's "
        "yearly archive contains it)."
    )


def _get(files: Mapping[str, bytes], name: str, path: Path) -> bytes:
    if name not in files:
        raise FileNotFoundError(
            f"Expected {name} in {path}, but of WIT3's files it has {', '.join(sorted(files))}; download the release "
            "again."
        )
    return files[name]


def _read_archive(path: Path) -> dict[str, bytes]:
    try:
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_tar(path)
    except _RefusedArchive:
        raise
    except _DAMAGED as error:
        raise ValueError(
            f"Expected {path} to be a whole .tgz, .tar or .zip archive without a password, but it is cut short or "
            f"damaged ({error}); download it again."
        ) from error


def _read_tar(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    num_bytes = 0
    with _opened(path) as stream, tarfile.open(fileobj=_Headers(stream), mode="r:") as archive:
        for member in archive:
            num_bytes += member.size
            _check_size(path, num_bytes)
            if member.isreg() and not member.issparse() and _wanted(name := Path(member.name).name):
                # Nothing is written, so a member's path and mode have no effect.
                stream.seek(member.offset_data)
                _add(files, name, stream.read(member.size), path)
        # tarfile stops at the end mark of the archive; the checksum of the compressed data comes only after it.
        while rest := stream.read(2**20):
            num_bytes += len(rest)
            _check_size(path, num_bytes)
    return files


def _opened(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        start = file.read(6)
    by_start = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    return next((opened for magic, opened in by_start.items() if start.startswith(magic)), open)(path, "rb")


class _Headers:
    """A stream from which tarfile reads headers alone: not too many bytes of them, and without a way back.

    tarfile itself would read a header of any size, and go back to where a negative size leads, perhaps for ever.
    """

    def __init__(self, stream: BinaryIO):
        self._stream, self._left, self.tell = stream, MAX_HEADER_BYTES, stream.tell

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise tarfile.ReadError(f"it has more than {MAX_HEADER_BYTES:,} bytes of headers")
        return self._stream.read(size)

    def seek(self, position: int) -> None:
        if position < self.tell() - 1:  # by one, to see whether the last block is whole
            raise tarfile.ReadError("it has a file of negative size")
        self._stream.seek(position)


def _read_zip(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(path) as archive:
        _check_size(path, sum(member.file_size for member in archive.infolist()))
        for member in archive.infolist():
            is_link = member.external_attr >> 16 & 0o170000 == 0o120000
            if not member.is_dir() and not is_link and _wanted(name := Path(member.filename).name):
                with archive.open(member) as stream:
                    _add(files, name, stream.read(), path)
    return files


class _RefusedArchive(ValueError):
    """What is wrong is not damage."""


def _check_size(path: Path, num_bytes: int) -> None:
    if num_bytes > MAX_ARCHIVE_BYTES:
        raise _RefusedArchive(
            f"Expected {path} to be WIT3's release of one language pair, but it unpacks to {num_bytes:,} bytes or "
            f"more and at most {MAX_ARCHIVE_BYTES:,} are read; unpack it yourself and give the folder."
        )


def _add(files: dict[str, bytes], name: str, data: bytes, path: Path) -> None:
    if name in files:
        raise _RefusedArchive(
            f"Expected one {name} in {path}, but there are several; unpack it and give the folder of one pair."
        )
    files[name] = data
