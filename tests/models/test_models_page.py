"""docs/models.md says what the tests of its tables say."""

from __future__ import annotations

import image_models
import pytest
import seq2seq_models
from causal_models import CAUSAL_MODELS
from models_page import COLUMNS, IMAGES, PAGE, PROMPTS, TEXT, format_table, with_tables

NAMES = {
    TEXT: seq2seq_models.build_seq2seq_models(),
    PROMPTS: CAUSAL_MODELS,
    IMAGES: image_models.build_image_models(),
}
ALL_PASS = {(file, test, name): True for file in COLUMNS for test in COLUMNS[file] for name in NAMES[file]}


def test_page_is_that_of_tests_that_all_pass():
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, ALL_PASS) == page, "run `make models`"


@pytest.mark.parametrize("file", COLUMNS)
def test_columns_are_tests_of_every_model(file):
    source = (PAGE.parents[1] / file).read_text(encoding="utf-8")
    assert all(f"@every_model\ndef {test}(name" in source for test in COLUMNS[file])


def test_what_fails_shows():
    failed = {**ALL_PASS, (TEXT, "test_patch", "T5"): False}
    (row,) = [line for line in format_table(TEXT, failed).splitlines() if line.startswith("| T5 ")]
    assert row == "| T5 (FLAN-T5) | yes | yes | yes | yes | yes | no | yes |"
