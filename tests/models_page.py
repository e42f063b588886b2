"""Writes the tables of docs/models.md from what the tests say: `make models`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/models.md"
TEXT, IMAGES = "tests/models/test_seq2seq_models.py", "tests/models/test_image_classifiers.py"
PROMPTS = "tests/models/test_causal_models.py"

# Headers of the columns, by the test that each cell stands for.
COLUMNS = {
    TEXT: {
        "test_edit": "edit, decode with it",
        "test_feed_forward_part_of_the_last_layer": "`last_decoder_mlp`",
        "test_last_block_and_head": "`last_block`, `head`",
        "test_training_step_with_replay_is_that_without": "train",
        "test_saved_and_loaded": "save, load",
        "test_patch": "patch",
        "test_review_is_that_of_generating_twice": "`diff`",
    },
    PROMPTS: {
        "test_edit": "edit, decode with it",
        "test_parts": "`last_decoder_mlp`, `last_block`, `head`",
        "test_training_step_with_replay_is_that_without": "train",
        "test_saved_and_loaded": "save, load",
        "test_patch": "patch",
        "test_review_is_that_of_generating_twice": "`diff`",
    },
    IMAGES: {
        "test_edit": "edit, classify with it",
        "test_names_of_parts": "`last_block`, `head`",
        "test_training_step_with_replay_is_that_without": "request, train",
        "test_saved_and_loaded": "save, load",
        "test_patch": "patch",
        "test_review_is_that_of_classifying_twice": "`diff`",
    },
}
# Where the Hub knows models of an architecture by other names.
ALSO = {
    "BERT2BERT": "`EncoderDecoderModel` of two BERTs",
    "BigBirdPegasus": 'with `attention_type="original_full"`',
    "FSMT": "facebook/wmt19",
    "M2M100": "NLLB",
    "MBart": "mBART-cc25, mBART-50",
    "Marian": "Helsinki-NLP/opus-mt",
    "T5": "FLAN-T5",
    "gpt_neox": "Pythia",
    "gemma3_text": "Gemma 3",
    "llama": "SmolLM2, TinyLlama",
    "phi": "Phi-2",
    "qwen2": "Qwen2.5",
}

Outcomes = Mapping[tuple[str, str, str], bool]


def format_table(file: str, outcomes: Outcomes) -> str:
    """A row for each architecture that a file tests.

    Args:
        file: Of the tests.
        outcomes: Whether a test passed, by its file, its name and the architecture.
    """
    columns = COLUMNS[file]
    names = sorted({name for tested, _, name in outcomes if tested == file}, key=str.lower)
    lines = [f"| architecture | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
    for name in names:
        cells = ["yes" if outcomes[file, test, name] else "no" for test in columns]
        lines.append(f"| {name}{f' ({ALSO[name]})' if name in ALSO else ''} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_tables(page: str, outcomes: Outcomes) -> str:
    """`page` with a new table after each line that names its tests in a comment."""
    for file in COLUMNS:
        start = f"<!-- {file} -->\n\n"
        before, after = page.split(start)
        _, rest = after.split("\n\n", 1)
        page = f"{before}{start}{format_table(file, outcomes)}\n{rest}"
    return page


class Recorder:
    """A plugin of pytest that keeps the outcomes of tests with one parameter."""

    def __init__(self):
        self.outcomes: dict[tuple[str, str, str], bool] = {}

    def pytest_runtest_logreport(self, report) -> None:
        file, _, test = report.nodeid.partition("::")
        test, bracket, name = test.removesuffix("]").partition("[")
        if bracket and test in COLUMNS[file]:
            key = (file, test, name)
            self.outcomes[key] = report.passed and self.outcomes.get(key, True)


def main() -> int:
    recorder = Recorder()
    code = pytest.main(["-q", "-p", "no:xdist", "--rootdir", str(ROOT), *COLUMNS], plugins=[recorder])
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), recorder.outcomes), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
