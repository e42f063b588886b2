from __future__ import annotations

import json

import pytest
import torch
from compare_fixes import correction_reach, related_sentences
from transformers import MarianMTModel

from editable_hf.data.embedded import embedded_requests
from editable_hf.data.tokenizer import train_tokenizer
from editable_hf.data.translation import load_translation_data
from editable_hf.models import iwslt_transformer_config

METHODS = ["edit, editable", "edit, baseline", "fine-tune, all", "fine-tune, last decoder layer"]
METHODS += ["train on, 2 updates", "lookup table"]


@pytest.fixture
def model_folder(tmp_path):
    """A tiny Marian with random weights that knows the words of the embedded corpus."""
    train = load_translation_data("embedded", max_train_samples=500).splits["train"]
    languages = {"source_lang": "de", "target_lang": "en"}
    tokenizer = train_tokenizer([*train["source"], *train["target"]], vocab_size=1000, max_length=50, **languages)
    torch.manual_seed(0)
    model = MarianMTModel(iwslt_transformer_config(tokenizer, "tiny", 0.1, 50))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_all_methods_on_the_same_corrections(run_script, model_folder, tmp_path):
    options = ["--baseline", model_folder, "--editable", model_folder, "--output_dir", tmp_path / "out"]
    options += ["--num_fixes", 2, "--num_retrained", 1, "--num_updates", 2, "--num_validation", 1]
    options += ["--num_sentences", 2, "--batch_size", 3, "--max_steps", 2]
    done = run_script("scripts/compare_fixes.py", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == METHODS and results["seed"] == 0 and results["config"]["num_fixes"] == 2

    lookup = rows["lookup table"]
    assert (lookup["holds"], lookup["unrelated"], lookup["bleu_drawdown"]) == (1, 1, 0)
    assert all(lookup[name] == lookup[f"{name}_before"] for name in ("paraphrases", "neighbors"))
    sources = {}
    for name in rows:
        folder = tmp_path / "out" / name.replace(", ", "-").replace(" ", "_")
        records = [json.loads(line) for line in (folder / "fixes.jsonl").read_text().splitlines()]
        sources[name] = [record["source"] for record in records]
        assert rows[name]["num_edits"] == len(records) == (1 if name.startswith("train on") else 2)
        tried = rows[name]["tried"]
        assert rows[name]["learning_rate"] in [row["learning_rate"] for row in tried] or name == "lookup table"
        assert all((folder / f"validation-alpha{row['learning_rate']:g}.jsonl").exists() for row in tried)
    assert all(asked == sources["lookup table"][: len(asked)] for asked in sources.values())


def pairs(*names):
    return [{"source": name, "target": name.upper()} for name in names]


@pytest.fixture
def request_row():
    related = {"paraphrases": pairs("b"), "neighbors": pairs("c", "d", "e", "f"), "unrelated": pairs("x", "y")}
    return {"source": "a", "target": "A", **related}


def test_shares_are_counted(request_row):
    before = dict.fromkeys("abdefx", "old") | {"c": "C", "y": "Y"}
    after = {"a": "A", "b": "B", "c": "C", "d": "D", "e": "E", "f": "old", "x": "old", "y": "changed"}
    assert correction_reach(request_row, before, after) == {
        "source": "a",
        "holds": True,
        "paraphrases": 1.0,
        "paraphrases_before": 0.0,
        "neighbors": 0.75,
        "neighbors_before": 0.25,
        "unrelated": 0.5,  # stays as it was, right or wrong
    }
    nothing = correction_reach(request_row, before, before)
    assert not nothing["holds"] and nothing["unrelated"] == 1 and nothing["neighbors"] == 0.25


def test_sentences_of_an_embedded_request():
    request = embedded_requests()[2]
    found = related_sentences(request)
    assert found[0] == request["source"] and len(found) == len(set(found))
    assert len(found) == 1 + sum(len(request[name]) for name in ("paraphrases", "neighbors", "unrelated"))
