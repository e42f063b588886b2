from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from edit_distance import changed_by_distance, changes_of, embed_sources


@pytest.mark.slow
def test_distance_of_a_measured_drawdown(run_script, translator_folder, corpus, tmp_path):
    drawdown = tmp_path / "drawdown"
    options = ["--model", translator_folder, "--data", corpus, "--num_edits", "4", "--num_alternatives", "3"]
    options += ["--num_beams", "2", "--learning_rate", "3e-3"]
    done = run_script("scripts/bleu_drawdown.py", *options, "--output_dir", drawdown)
    assert done.returncode == 0, done.stderr
    done = run_script(
        "scripts/edit_distance.py", "--runs", drawdown, "--num_bins", "3", "--output_dir", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "out/distance.json").read_text())["rows"]
    records = [json.loads(line) for line in (drawdown / "edits.jsonl").read_text().splitlines()]
    moved = [record for record in records if record["num_steps"] > 0]
    assert len(rows) == 3 and all(row["num_edits"] == len(moved) > 0 for row in rows)
    assert Dataset.from_parquet(str(tmp_path / "out/distance.parquet")).num_rows == 3
    assert all(f"{row['changed']:.2%}" in done.stdout for row in rows)


def test_runs_of_the_same_name_are_refused(run_script, tmp_path):
    done = run_script(
        "scripts/edit_distance.py", "--runs", tmp_path / "a/run", tmp_path / "b/run", "--output_dir", tmp_path
    )
    assert done.returncode != 0 and "told apart by the names of their folders" in done.stderr


def test_unfinished_run_is_refused(run_script, tmp_path):
    done = run_script("scripts/edit_distance.py", "--runs", tmp_path)
    assert done.returncode != 0 and "lacks settings.json, edits.jsonl, results.json" in done.stderr


def test_shares_are_those_of_a_sort_by_hand():
    generator = torch.Generator().manual_seed(0)
    similarities = torch.rand(5, 12, generator=generator)
    changed = torch.rand(5, 12, generator=generator) < 0.4
    similarities[1, 3] = torch.nan  # the edited sentence itself
    changed[1, 3] = True
    rows = changed_by_distance(similarities, changed, num_bins=3)
    nearest, middle = [], []
    for row, touched in zip(similarities.tolist(), changed.tolist(), strict=True):
        order = sorted((-value, index) for index, value in enumerate(row) if value == value)
        nearest.append(sum(touched[index] for _, index in order[:4]) / 4)
        middle.append(sum(touched[index] for _, index in order[4:8]) / len(order[4:8]))
    assert rows[0]["changed"] == pytest.approx(sum(nearest) / 5)
    assert rows[1]["changed"] == pytest.approx(sum(middle) / 5)
    assert [row["nearest"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rows[0]["similarity"] > rows[1]["similarity"] > rows[2]["similarity"]
    assert rows[0]["interval"][0] <= rows[0]["changed"] <= rows[0]["interval"][1]


def test_too_few_sentences():
    with pytest.raises(ValueError, match="8 sentences cannot be divided into 10 parts"):
        changed_by_distance(torch.rand(2, 8), torch.ones(2, 8, dtype=torch.bool))


def test_changes_come_from_the_records():
    records = [{"changed": [{"index": 2, "after": "a"}, {"index": 0, "after": "b"}]}, {"changed": []}]
    assert changes_of(records, 4).tolist() == [[True, False, True, False], [False] * 4]


def test_embedding_does_not_depend_on_the_batch(trained_marian, tokenizer, sentence_pairs):
    model, sources = trained_marian.train(), list(sentence_pairs[0][:7])
    together = embed_sources(model, tokenizer, sources, progress=None)
    alone = torch.cat([embed_sources(model, tokenizer, [source], progress=None) for source in sources])
    assert together.shape == (7, model.config.d_model) and model.training
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(7))
    states = model.eval().get_encoder()(**tokenizer(sources[0], return_tensors="pt")).last_hidden_state[0]
    assert torch.allclose(together[0], (states.mean(0) / states.mean(0).norm()).float(), atol=1e-5)
