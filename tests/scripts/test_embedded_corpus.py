"""The generator of the embedded corpus still makes the files that are shipped; what these hold is tested as data."""

import lzma

import pytest

pytest.importorskip("babel", reason="the generator needs scripts/embedded_corpus/requirements.txt")
pytest.importorskip("num2words", reason="the generator needs scripts/embedded_corpus/requirements.txt")

from generate import FOLDER, pairs_text, requests_text  # noqa: E402


@pytest.mark.parametrize(("name", "make"), [("pairs.tsv.xz", pairs_text), ("requests.jsonl.xz", requests_text)])
def test_shipped_files_are_what_it_makes(name, make):
    assert lzma.decompress(FOLDER.joinpath(name).read_bytes()).decode() == make()
