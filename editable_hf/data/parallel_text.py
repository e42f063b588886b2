"""Aligned sentences of two languages, and which split of a corpus plays which part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# Split names in use, by the part they play: fairseq's, Multi30k's, the hub's.
SPLIT_CANDIDATES = {
    "train": ("train", "train_subset"),
    "validation": ("valid", "val", "dev", "validation"),
    "test": ("test", "test_2016_flickr"),
}


@dataclass(frozen=True)
class ParallelText:
    """One split of a parallel corpus; all lists have the same length.

    Attributes:
        name: What the corpus itself calls the split, e.g. "test_2016_flickr".
        sources: Source sentences.
        targets: Target sentences.
        target_texts: Untokenized references where the corpus has them beside tokenized `targets`, else `None`.
    """

    name: str
    sources: Sequence[str]
    targets: Sequence[str]
    target_texts: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def select(self, indices: Sequence[int]) -> ParallelText:
        """The pairs at `indices`, in that order."""

        def pick(column: Sequence) -> list:
            return [column[i] for i in indices]

        return ParallelText(
            name=self.name,
            sources=pick(self.sources),
            targets=pick(self.targets),
            target_texts=None if self.target_texts is None else pick(self.target_texts),
        )


def check_same_length(first: Sequence, second: Sequence, first_name: str, second_name: str) -> None:
    """Stops where two files that should be aligned line by line are not.

    Raises:
        ValueError: If the numbers of lines differ; names both files with their counts.
    """
    if len(first) != len(second):
        raise ValueError(
            f"Expected aligned files, but {first_name} has {len(first):,} lines and {second_name} has "
            f"{len(second):,}; check that both are whole and of the same version."
        )


def check_no_empty_lines(lines: Sequence[str], name: str) -> None:
    """Stops at a blank line, which is half of a pair gone missing.

    Raises:
        ValueError: If a line has no text or there is none; names the file and the line, counted from 1.
    """
    if not lines:
        raise ValueError(f"Expected a sentence on every line of {name}, but it is empty; fetch or copy it again.")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise ValueError(
                f"Expected a sentence on every line, but line {number} of {name} is empty; remove that line from the "
                "files of both languages."
            )


def choose_splits(available: Iterable[str], split_names: Mapping[str, str] | None, where: str) -> dict[str, str]:
    """Decides which split of a corpus serves as train, validation and test.

    Args:
        available: Names of the splits that there are.
        split_names: Explicit choice, e.g. `{"test": "test_2017_flickr"}`; the parts left out go by
            `SPLIT_CANDIDATES`.
        where: The corpus, for errors.

    Returns:
        The name of a split for each of "train", "validation" and "test".

    Raises:
        ValueError: If `split_names` has an unknown key, or several candidates for a part are there.
        FileNotFoundError: If a part has no split.
    """
    available, split_names = sorted(set(available)), dict(split_names or {})
    unknown = sorted(split_names.keys() - SPLIT_CANDIDATES.keys())
    if unknown:
        raise ValueError(f"`split_names` has the keys {unknown}; expected only {list(SPLIT_CANDIDATES)}.")
    chosen = {}
    for part, candidates in SPLIT_CANDIDATES.items():
        wanted = (split_names[part],) if part in split_names else candidates
        found = [name for name in wanted if name in available]
        if len(found) > 1:
            raise ValueError(
                f"Expected one {part} split in {where}, but {' and '.join(found)} are there; choose with "
                f'`split_names={{"{part}": "{found[0]}"}}`.'
            )
        if not found:
            raise FileNotFoundError(
                f"Expected the {part} split of {where} under the name {' or '.join(wanted)}, but it has "
                f'{", ".join(available) or "no splits"}; name it with `split_names={{"{part}": ...}}`.'
            )
        chosen[part] = found[0]
    return chosen
