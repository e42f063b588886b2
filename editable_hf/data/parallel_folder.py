"""Folders with one file for each split and language, as fairseq and Multi30k lay them out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from editable_hf.data.parallel_text import (
    SPLIT_CANDIDATES,
    ParallelText,
    check_no_empty_lines,
    check_same_length,
    choose_splits,
)
from editable_hf.data.text_lines import COMPRESSIONS, read_lines

_BPE_JOINT = "@@ "


def is_parallel_folder(
    folder: Path, source_lang: str, target_lang: str, split_names: Mapping[str, str] | None = None
) -> bool:
    """Whether `folder` holds a file of a training split, e.g. `train.de`, in either language."""
    stems = [(split_names or {}).get("train"), *SPLIT_CANDIDATES["train"]]
    languages = (source_lang, target_lang)
    return any(_versions(folder, f"{stem}.{language}") for stem in stems if stem for language in languages)


def read_parallel_folder(
    folder: Path, source_lang: str, target_lang: str, split_names: Mapping[str, str] | None = None
) -> dict[str, ParallelText]:
    """Reads `{train,valid,test}.{de,en}` and the like; each file plain, `.gz` or `.xz`, whichever is there first.

    A file `STEM.raw.LANG` of the target language beside `STEM.LANG` gives the untokenized references.

    Args:
        folder: The folder.
        source_lang: Ending of the source files, e.g. "de".
        target_lang: Ending of the target files.
        split_names: See [`choose_splits`]; the names are file stems.

    Returns:
        "train", "validation" and "test".

    Raises:
        FileNotFoundError: If a split, or one language of it, is missing.
        ValueError: If a split is ambiguous, a file is damaged or not UTF-8, the two languages are not aligned, a line
            is empty, or the text is cut into subword units.
    """
    stems = _stems(folder, source_lang) | _stems(folder, target_lang)
    chosen = choose_splits(stems, split_names, f"the folder {folder}")
    return {part: _read_split(folder, stem, source_lang, target_lang) for part, stem in chosen.items()}


def _read_split(folder: Path, stem: str, source_lang: str, target_lang: str) -> ParallelText:
    source_path, target_path = _find(folder, f"{stem}.{source_lang}"), _find(folder, f"{stem}.{target_lang}")
    sources, targets = read_lines(source_path), read_lines(target_path)
    check_same_length(sources, targets, str(source_path), str(target_path))
    for lines, path in ((sources, source_path), (targets, target_path)):
        check_no_empty_lines(lines, str(path))
        if sum(_BPE_JOINT in line for line in lines) > len(lines) / 4:
            raise ValueError(
                f"Expected whole words in {path}, but it is cut into subword units ('@@ '); use the files from before "
                "BPE, which fairseq's prepare-iwslt14.sh keeps in the subfolder `tmp`."
            )
    target_texts = None
    if _versions(folder, f"{stem}.raw.{target_lang}"):
        raw_path = _find(folder, f"{stem}.raw.{target_lang}")
        target_texts = read_lines(raw_path)
        check_no_empty_lines(target_texts, str(raw_path))
        check_same_length(targets, target_texts, str(target_path), str(raw_path))
    return ParallelText(name=stem, sources=sources, targets=targets, target_texts=target_texts)


def _stems(folder: Path, language: str) -> set[str]:
    endings = tuple(f".{language}{compression}" for compression in COMPRESSIONS)
    return {
        path.name.removesuffix(ending)
        for path in folder.iterdir()
        for ending in endings
        if path.name.endswith(ending) and path.is_file()
    }


def _versions(folder: Path, name: str) -> list[Path]:
    return [path for ending in COMPRESSIONS if (path := folder / f"{name}{ending}").is_file()]


def _find(folder: Path, name: str) -> Path:
    versions = _versions(folder, name)
    if not versions:
        raise FileNotFoundError(
            f"Expected {name} (plain, .gz or .xz) in {folder}, but only the other language of this split is there; "
            "add the file, or check `source_lang` and `target_lang`."
        )
    return versions[0]
