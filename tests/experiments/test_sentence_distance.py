from __future__ import annotations

import pytest
import torch

from editable_hf.experiments.plots import plot_changed_by_distance
from editable_hf.experiments.sentence_distance import changed_by_distance, changes_of, embed_sources


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
    similarities = torch.rand(2, 12)
    similarities[1, :4] = torch.nan
    with pytest.raises(ValueError, match="8 sentences cannot be divided into 10 parts"):
        changed_by_distance(similarities, torch.ones(2, 12, dtype=torch.bool))


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


def test_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    similarities = torch.rand(6, 40, generator=torch.Generator().manual_seed(0))
    curves = {
        name: changed_by_distance(similarities, similarities > limit) for name, limit in (("a", 0.3), ("b", 0.7))
    }
    plot_changed_by_distance(curves, tmp_path / "picture.png", "a title")
    content = (tmp_path / "picture.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 5_000
