"""`editable-hf terms`, from a glossary to patches that apply."""

import json

import pytest

from editable_hf import EditorConfig
from editable_hf.cli import main
from editable_hf.patches.patch import Patch


@pytest.fixture
def files(translator_folder, sentence_pairs, tmp_path):
    """The model, a glossary of two terms that it knows, one absent and one bad line, and its sentences."""
    EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60).save_pretrained(translator_folder)
    glossary, corpus = tmp_path / "glossary.tsv", tmp_path / "corpus.txt"
    glossary.write_text("hund\tthe woman\tthe dog\nstadt\tthe house\tthe city\nelefant\tdog\nzug\t\n")
    corpus.write_text("".join(f"{text}\n" for text in sentence_pairs[0]))
    return [str(translator_folder), str(glossary), "--corpus", str(corpus)]


def test_one_patch_for_a_glossary(files, capsys, tmp_path):
    output = str(tmp_path / "patch")
    assert main(["terms", *files, "-o", output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["patches"] == [output] and found["left_out"] == {"empty target": 1} and found["absent"] == 1
    assert [state["source"] for state in found["terms"]] == [["hund"], ["stadt"]]
    assert all(state["held_out_right"] > state["held_out_right_before"] for state in found["terms"])
    kept = Patch.from_pretrained(output).metrics["terms"]
    assert [{**state, "patch": output} for state in kept] == found["terms"]
    assert main(["apply", files[0], output, "-o", str(tmp_path / "patched")]) == 0
    assert main(["terms", *files, "-o", output]) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.slow
def test_one_patch_for_each_term(files, capsys, tmp_path):
    output = tmp_path / "patches"
    assert main(["terms", *files, "-o", str(output), "--separate"]) == 0
    printed = capsys.readouterr().out
    assert "hund = the woman: edited sentences right 0 -> " in printed and "empty target: 1" in printed
    assert "Terms that no sentence of the corpus uses: 1" in printed
    for number, source in enumerate(("hund", "stadt")):
        (state,) = Patch.from_pretrained(output / f"{number:04}").metrics["terms"]
        assert state["source"] == [source]


def test_nothing_to_edit_writes_nothing(files, capsys, tmp_path):
    (tmp_path / "glossary.tsv").write_text("elefant\tdog\n")
    assert main(["terms", *files, "-o", str(tmp_path / "patch")]) == 1
    assert "No patch was written" in capsys.readouterr().out and not (tmp_path / "patch").exists()
