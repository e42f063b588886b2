from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, BertConfig

from editable_hf import make_edit_requests, read_edit_requests, request_constraint
from editable_hf.core.functional import FunctionalModel
from editable_hf.data.requests import NoEditRequestsError, strip_ids
from editable_hf.training.request_order import draw_requests

pytestmark = pytest.mark.compat

OPTIONS = {"num_alternatives": 4, "progress": None}


@pytest.fixture
def make(trained_marian, tokenizer):
    def build(sources, **options):
        return make_edit_requests(trained_marian, tokenizer, sources, **{**OPTIONS, **options})

    return build


def test_models_that_do_not_write_are_refused(tokenizer):
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=len(tokenizer), **shape))
    with pytest.raises(TypeError, match="encoder-decoder model .* got BertForSequenceClassification"):
        make_edit_requests(model, tokenizer, ["der hund"])
    with pytest.raises(TypeError, match="which has no encoder"):
        request_constraint({"input_ids": [4], "labels": [5], "alternatives": [[6]]}, model)


def test_columns(make, sentence_pairs, tokenizer):
    sources = sentence_pairs[0][:5]
    requests = make(sources, temperature=1.0, batch_size=2)
    assert set(requests.column_names) == {"id", "source", "target", "input_ids", "labels", "alternatives"}
    assert len(requests) == 5
    for row in requests:
        assert row["source"] == sources[row["id"]]
        assert row["input_ids"] == tokenizer(row["source"])["input_ids"]
        assert row["target"] == tokenizer.decode(row["labels"], skip_special_tokens=True)
        alternatives = row["alternatives"]
        assert 3 <= len(alternatives) <= 4
        assert len({tuple(ids) for ids in alternatives}) == len(alternatives)
        assert row["labels"] not in alternatives
        for ids in (row["labels"], *alternatives):
            assert len(ids) <= 39 and 1 not in ids and ids.count(2) <= 1
            assert 2 not in ids or ids[-1] == 2
        assert row["labels"][-1] == 2


def test_alternatives_are_the_beam(make, trained_marian, sentence_pairs, tokenizer):
    source = sentence_pairs[0][3]
    (row,) = make([source], targets=["the the the"])
    with torch.no_grad():
        beams = trained_marian.generate(
            **tokenizer([source], return_tensors="pt"),
            num_beams=4,
            num_return_sequences=4,
            early_stopping=True,
            max_new_tokens=25,
        )
    assert tokenizer.batch_decode(row["alternatives"]) == tokenizer.batch_decode(
        [[token for token in ids[1:] if token != 1] for ids in beams.tolist()]
    )


def test_alternatives_do_not_depend_on_the_batch(make, sentence_pairs):
    sources = sentence_pairs[0][:6]
    by_one, together = make(sources, targets=["the"] * 6, batch_size=1), make(sources, targets=["the"] * 6)
    assert by_one.to_list() == together.to_list()


def test_targets_are_sampled_by_seed_alone(make, sentence_pairs):
    sources = sentence_pairs[0][:4]
    torch.manual_seed(5)
    first = make(sources, temperature=3.0, seed=1)["labels"]
    torch.manual_seed(6)
    state = torch.random.get_rng_state()
    assert make(sources, temperature=3.0, seed=1)["labels"] == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert make(sources, temperature=3.0, seed=2)["labels"] != first


def test_temperature_counts(make, sentence_pairs):
    sources = sentence_pairs[0][:6]
    cold, hot = make(sources, temperature=1e-4), make(sources, temperature=20.0)
    assert all(set(row["target"]) <= set("abcdefghijklmnopqrstuvwxyz .") for row in cold)
    words = set(" ".join(sentence_pairs[1]).split())
    assert all(word in words for row in cold for word in row["target"].split())
    assert not all(word in words for row in hot for word in row["target"].split())


def test_model_is_left_as_it_was(make, trained_marian, sentence_pairs):
    before = {name: value.clone() for name, value in trained_marian.state_dict().items()}
    for mode in (True, False):
        trained_marian.train(mode)
        make(sentence_pairs[0][:1])
        assert trained_marian.training is mode and trained_marian.model.decoder.training is mode
    assert all(torch.equal(value, before[name]) for name, value in trained_marian.state_dict().items())


def test_mode_and_random_state_after_an_error(make, trained_marian, sentence_pairs):
    trained_marian.train()
    state = torch.random.get_rng_state()
    with pytest.raises(RuntimeError):
        make(sentence_pairs[0][:1], num_alternatives=-1)
    assert trained_marian.training and torch.equal(torch.random.get_rng_state(), state)


def test_given_targets(make, sentence_pairs, tokenizer, trained_marian):
    sources, targets = sentence_pairs
    requests = make(sources[:3], targets=targets[1:4], batch_size=2, first_id=7)
    assert requests["id"] == [7, 8, 9]
    assert requests["target"] == targets[1:4]
    assert requests["labels"] == tokenizer(text_target=targets[1:4])["input_ids"]
    constraint = request_constraint(requests[0], trained_marian)
    value = constraint(FunctionalModel(trained_marian, ["model.shared.weight"]), {})
    assert value > 1  # nats: the model prefers its own translations by far


def test_source_with_nothing_to_beat_is_left_out(make, sentence_pairs, tokenizer):
    sources = sentence_pairs[0][:2]
    best = make(sources, targets=["the", "the"], num_alternatives=1)["alternatives"][0][0]
    targets = [tokenizer.decode(best, skip_special_tokens=True), "the"]
    requests = make(sources, targets=targets, num_alternatives=1)
    assert requests["id"] == [1]


def test_sampled_target_that_is_cut_is_left_out(make, sentence_pairs, monkeypatch, caplog):
    sources = sentence_pairs[0][:3]
    whole = make(sources, temperature=1.0)
    assert len(whole) == 3
    lengths = {row["id"]: len(row["labels"]) for row in whole}
    longest = max(lengths.values())
    kept = [number for number, length in lengths.items() if length < longest]
    assert kept
    monkeypatch.setattr("editable_hf.data.requests.translation_limit", lambda *args: longest - 1)
    with caplog.at_level("INFO", logger="editable_hf"):
        requests = make(sources, temperature=1.0)
    assert requests["id"] == kept
    assert [row["target"] for row in requests] == [whole["target"][number] for number in kept]
    assert f"{3 - len(kept)} a sampled target that is cut at the length limit" in caplog.text


def test_no_request_at_all(make, sentence_pairs, tokenizer, monkeypatch):
    sources = sentence_pairs[0][:2]
    found = make(sources, targets=["the", "the"], num_alternatives=1)["alternatives"]
    best = tokenizer.batch_decode([ids[0] for ids in found], skip_special_tokens=True)
    with pytest.raises(NoEditRequestsError, match="2 of 2 have a target that is the only translation found, and 0"):
        make(sources, targets=best, num_alternatives=1)
    monkeypatch.setattr("editable_hf.data.requests.translation_limit", lambda *args: 2)
    with pytest.raises(ValueError, match="0 of 2 .*, and 2 a sampled target that is cut .*lower `temperature`"):
        make(sources)


def test_cut_at_the_limit_is_no_matter_of_given_targets(make, sentence_pairs, monkeypatch):
    monkeypatch.setattr("editable_hf.data.requests.translation_limit", lambda *args: 2)
    assert len(make(sentence_pairs[0][:2], targets=sentence_pairs[1][:2])) == 2


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        (["der hund .", " "], None, "source of edit request 1 is empty"),
        (["der hund ."], [""], "target of edit request 0 is empty"),
        (["der hund .", "ein buch ."], ["the dog ."], "2 sources but 1 targets"),
        (["der hund ."], [], "1 sources but 0 targets"),
        ([], None, "There is no source to make an edit request of"),
    ],
)
def test_bad_pairs(make, sources, targets, message):
    with pytest.raises(ValueError, match=message):
        make(sources, targets=targets)


# Requests from a file


def test_requests_from_a_file(tmp_path, trained_marian, tokenizer, sentence_pairs, make):
    sources, targets = sentence_pairs[0][:2], sentence_pairs[1][1:3]
    path = tmp_path / "requests.jsonl"
    lines = [json.dumps({"source": s, "target": t}) for s, t in zip(sources, targets, strict=True)]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    requests = read_edit_requests(path, trained_marian, tokenizer, **OPTIONS)
    assert requests.to_list() == make(sources, targets=targets).to_list()


# A request as a constraint


def test_constraint_with_an_empty_source(trained_marian):
    row = {"id": 4, "input_ids": [], "labels": [5, 2], "alternatives": [[6, 2]]}
    with pytest.raises(ValueError, match="Edit request 4 has an empty source"):
        request_constraint(row, trained_marian)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"labels": [], "alternatives": [[6, 2]]}, "target is empty"),
        ({"labels": [5] * 40 + [2], "alternatives": [[6, 2]]}, "41 tokens, but the model decodes at most 40"),
        ({"labels": [5, 2], "alternatives": [[5, 2]]}, "No alternative differs"),
    ],
)
def test_constraint_of_a_bad_request(trained_marian, row, message):
    with pytest.raises(ValueError, match=message):
        request_constraint({"input_ids": [5, 2], **row}, trained_marian)


# Drawing


@given(st.integers(1, 7), st.integers(0, 5), st.integers(1, 4))
def test_each_epoch_is_a_permutation(num_requests, seed, epochs):
    rows = draw_requests(num_requests, 0, num_requests * epochs, seed)
    for epoch in range(epochs):
        assert sorted(rows[epoch * num_requests : (epoch + 1) * num_requests]) == list(range(num_requests))


@given(st.integers(1, 7), st.integers(0, 30), st.integers(0, 9), st.integers(0, 9))
def test_draws_continue_where_they_stopped(num_requests, first, count, more):
    whole = draw_requests(num_requests, first, count + more, seed=3)
    parts = draw_requests(num_requests, first, count, 3) + draw_requests(num_requests, first + count, more, 3)
    assert whole == parts and len(whole) == count + more


def test_epochs_and_seeds_differ():
    first, second = draw_requests(20, 0, 20, 0), draw_requests(20, 20, 20, 0)
    assert first != second != draw_requests(20, 0, 20, 5)


def test_drawing_leaves_the_global_random_state():
    state = torch.random.get_rng_state()
    draw_requests(5, 0, 3, 0)
    assert torch.equal(torch.random.get_rng_state(), state)


# Generated ids


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ([2, 7, 8, 2, 1, 1], [7, 8, 2]),  # starts from the end of sequence, as fairseq does
        ([1, 7, 8, 2], [7, 8, 2]),
        ([2, 7, 8, 9], [7, 8, 9]),
        ([2, 7, 8, 1], [7, 8]),
        ([2, 2, 1, 1], [2]),
        ([2, 7, 2, 8, 2], [7, 2]),
    ],
)
def test_strip_ids(tokenizer, generated, expected):
    assert strip_ids(torch.tensor(generated), tokenizer) == expected


@pytest.mark.parametrize("repeats", [True, False])
def test_model_that_repeats_itself_is_warned_of(make, sentence_pairs, monkeypatch, caplog, repeats):
    said = [5, 5, 5, 5, 9, 5, 2] if repeats else [5, 6, 7, 8, 9, 10, 2]
    monkeypatch.setattr("editable_hf.data.requests._beam_search", lambda model, tokenizer, inputs, k: [[said]] * 3)
    make(sentence_pairs[0][:3], targets=sentence_pairs[1][:3])
    assert ("3 of 3 translations of the model consist mostly of one token" in caplog.text) == repeats
