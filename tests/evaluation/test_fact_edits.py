"""Edits of facts, checked against decoding one prompt after another and against plain forward passes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from causal_models import causal_model
from torch.nn import functional as F

from editable_hf import edit, edited, make_edit_requests, rmsprop
from editable_hf.baselines import Grace
from editable_hf.data.tokenizer import train_causal_tokenizer
from editable_hf.evaluation import held_out_text
from editable_hf.evaluation.fact_edits import EditorFor, FactEditEvaluator
from editable_hf.evaluation.grace_edits import GraceEditEvaluator
from editable_hf.evaluation.held_out_text import HeldOutText
from editable_hf.evaluation.verified_edit import joint_constraint, verified_edit

NAMES = ["Arna", "Belo", "Corv", "Dunt"]
PROMPTS, TARGETS = [f"The capital of {name} is" for name in NAMES], [" Lim", " Mora", " Nek", " Ostro"]
TEXTS = [f"{prompt}{target}." for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
EDITOR, LAYERS, STEPS = rmsprop(3e-2), "last_decoder_mlp", 30


@pytest.fixture(scope="module")
def tokenizer():
    return train_causal_tokenizer([*TEXTS, "What Arna calls its capital, Dunt's capital: Lim."], 320, 32)


@pytest.fixture(scope="module")
def model(tokenizer):
    return causal_model("llama", vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=2)


@pytest.fixture(scope="module")
def requests(model, tokenizer):
    found = make_edit_requests(model, tokenizer, PROMPTS, targets=TARGETS, num_alternatives=4, progress=None)
    neighbors = [[{"prompt": PROMPTS[index - 1], "answer": TARGETS[index - 1]}] for index in range(len(PROMPTS))]
    questions = [[], *[[{"prompt": f"{name}'s capital:", "answer": " Lim"}] for name in NAMES[1:]]]
    return [
        {**row, "paraphrases": ["What Arna calls its capital:"], "neighbors": near, "portability": asked}
        for row, near, asked in zip(found, neighbors, questions, strict=True)
    ]


def evaluator(model, tokenizer, **options):
    unrelated = [{"prompt": "What Dunt calls", "answer": " its"}]
    return FactEditEvaluator(model, tokenizer, TEXTS, layers=LAYERS, unrelated=unrelated, **options)


def said(model, tokenizer, prompt, answer):
    """What greedy decoding gives for one prompt by itself, as many tokens as the answer has."""
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    inputs = tokenizer(prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=len(ids))
    return output[0, inputs["input_ids"].shape[1] :].tolist(), ids


def test_records_of_single_edits(model, tokenizer, requests, tmp_path):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure = evaluator(model, tokenizer)
    records = measure.evaluate(requests, EDITOR, max_steps=STEPS, path=tmp_path / "edits.jsonl", progress=None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [json.loads(line) for line in (tmp_path / "edits.jsonl").read_text().splitlines()] == records
    unedited = {
        each["neighbors"][0]["prompt"]: said(model, tokenizer, *each["neighbors"][0].values()) for each in requests
    }
    for request, record in zip(requests, records, strict=True):
        result = edit(model, joint_constraint([request], model), EDITOR, LAYERS, STEPS)
        assert record["success"] == result.success and record["num_steps"] == result.num_steps > 0
        with edited(model, result):
            output, target = said(model, tokenizer, request["source"], request["target"])
            assert record["reliability"] == float(output == target)
            output, target = said(model, tokenizer, request["paraphrases"][0], request["target"])
            assert record["generality"] == float(output == target)
            near = request["neighbors"][0]
            assert record["locality"] == float(
                said(model, tokenizer, *near.values())[0] == unedited[near["prompt"]][0]
            )
            for question in request["portability"]:
                output, answer = said(model, tokenizer, *question.values())
                assert record["portability"] == float(output == answer)
    assert records[0]["portability"] is None  # nothing follows from it
    assert sum(record["reliability"] for record in records) > 0 and any(record["kl"] > 0 for record in records)
    row = measure.summarize("row", records)
    assert row["reliability"] == pytest.approx(sum(record["reliability"] for record in records) / 4)
    assert row["portability"] == pytest.approx(sum(record["portability"] for record in records[1:]) / 3)
    ratio = sum(record["perplexity"] for record in records) / 4 / measure.text.perplexity
    assert row["perplexity_drawdown"] == pytest.approx(ratio - 1)


def test_forced_right_is_easier_than_said(model, tokenizer, requests):
    """A model that says something else first may still give each token of the target after those before it."""
    measure, shares = evaluator(model, tokenizer), []
    for request in requests:
        ids, labels = request["input_ids"], request["labels"]
        result = edit(model, joint_constraint([request], model), EDITOR, LAYERS, STEPS)
        with edited(model, result):
            (answers,) = measure.answers([request])
            likeliest = model(torch.tensor([ids + labels])).logits[0].argmax(-1).tolist()
        assert answers["forced"] == float(likeliest[len(ids) - 1 : -1] == labels)
        assert answers["forced"] >= answers["reliability"]
        shares.append(answers["forced"])
    assert 0 < sum(shares)
    assert sum(answers["forced"] for answers in measure.answers(requests)) < len(requests)  # of the unedited model


def test_held_out_text(model, tokenizer, requests, monkeypatch):
    """KL and perplexity over all tokens but the first, from one text after another without padding."""
    rows = tokenizer(TEXTS)["input_ids"]
    text = HeldOutText(model, [*rows, [3]], LAYERS, batch_size=3)
    result = edit(model, joint_constraint(requests[:1], model), EDITOR, LAYERS, STEPS)
    divergence, losses, count = 0.0, {"before": 0.0, "after": 0.0}, 0
    for row in rows:
        logits = {}
        with torch.no_grad():
            logits["before"] = model(torch.tensor([row])).logits[0, :-1].double()
            with edited(model, result):
                logits["after"] = model(torch.tensor([row])).logits[0, :-1].double()
        logs = {key: F.log_softmax(value, -1) for key, value in logits.items()}
        divergence += F.kl_div(logs["after"], logs["before"], log_target=True, reduction="sum").item()
        for key, value in logits.items():
            losses[key] += F.cross_entropy(value, torch.tensor(row[1:]), reduction="sum").item()
        count += len(row) - 1
    change = text.change(result.params)
    assert change.kl == pytest.approx(divergence / count, rel=1e-4)
    assert change.perplexity == pytest.approx(math.exp(losses["after"] / count), rel=1e-4)
    assert text.perplexity == pytest.approx(math.exp(losses["before"] / count), rel=1e-4)
    assert text.change({}) == (0.0, text.perplexity)
    with edited(model, result):  # as while edits are made in a row
        assert text.change(result.params) == change
    monkeypatch.setattr(held_out_text, "_MOST_LOGITS", 0)
    assert HeldOutText(model, rows, LAYERS, batch_size=3).change(result.params) == change
    with pytest.raises(ValueError, match="texts of two tokens or more"):
        HeldOutText(model, [[3]], LAYERS)


def test_edits_at_once_are_one_edit(model, tokenizer, requests):
    measure = evaluator(model, tokenizer, edits_at_once=2)
    records = measure.evaluate(requests, EDITOR, max_steps=STEPS, progress=None)
    for start in (0, 2):
        result = edit(model, joint_constraint(requests[start : start + 2], model), EDITOR, LAYERS, STEPS)
        pair = records[start : start + 2]
        assert all(record["kl"] == measure.text.change(result.params).kl for record in pair)
        with edited(model, result):
            for request, record in zip(requests[start : start + 2], pair, strict=True):
                output, target = said(model, tokenizer, request["source"], request["target"])
                assert record["reliability"] == float(output == target)


def test_editor_made_for_its_requests(model, tokenizer, requests):
    seen = []

    def make(group):
        seen.append([request["id"] for request in group])
        return EDITOR

    records = evaluator(model, tokenizer, edits_at_once=2).evaluate(requests, EditorFor(make), progress=None)
    assert seen == [[0, 1], [2, 3]] and len(records) == 4


def test_edits_in_a_row(model, tokenizer, requests):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure = evaluator(model, tokenizer)
    rows = measure.in_a_row(requests, EDITOR, [1, 3, 9], max_steps=STEPS, progress=None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [row["edits"] for row in rows] == [1, 3]
    params = {}
    for request in requests[:3]:
        with edited(model, params):
            params = edit(model, joint_constraint([request], model), EDITOR, LAYERS, STEPS).params
    assert rows[1]["kl"] == measure.text.change(params).kl
    with edited(model, params):
        pairs = [said(model, tokenizer, request["source"], request["target"]) for request in requests[:3]]
    assert rows[1]["reliability"] == pytest.approx(sum(output == target for output, target in pairs) / 3)


@pytest.mark.parametrize("size", [1, 2])
def test_rounds_are_those_of_a_verified_edit(model, tokenizer, requests, size):
    few = [{**request, "alternatives": request["alternatives"][-1:]} for request in requests]
    once = evaluator(model, tokenizer, edits_at_once=size).evaluate(few, EDITOR, max_steps=STEPS, progress=None)
    measure = evaluator(model, tokenizer, edits_at_once=size, max_rounds=10)
    records = measure.evaluate(few, EDITOR, max_steps=STEPS, progress=None)
    assert sum(each["reliability"] for each in once) < sum(each["reliability"] for each in records) == len(few)
    outcome = verified_edit(model, tokenizer, few[:size], EDITOR, LAYERS, max_steps=STEPS, max_rounds=10)
    assert outcome.all_verified and records[0]["kl"] == measure.text.change(outcome.result.params).kl


def test_edits_in_a_codebook(model, tokenizer, requests):
    """GRACE: measured as its `applied` answers, the text by plain forwards; all edits in a row in one codebook."""
    layer = "layers.1.mlp.down_proj.weight"
    measure = GraceEditEvaluator(model, tokenizer, TEXTS, layers=layer)
    records = measure.evaluate(requests, lambda: Grace(model, layer, radius=0.3), max_steps=50, progress=None)
    assert all(record["kl"] > 0 for record in records)
    grace, text = Grace(model, layer, radius=0.3), tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    grace.edit(joint_constraint(requests[:1], model), 50)
    with grace.applied():
        output, target = said(model, tokenizer, requests[0]["source"], requests[0]["target"])
        assert records[0]["reliability"] == float(output == target)
        after = math.exp(model(text, labels=text).loss.item())
    alone = HeldOutText(model, text.tolist(), layer)
    assert alone.change({}, grace.applied).perplexity == pytest.approx(after) != pytest.approx(alone.perplexity)
    (row,) = measure.in_a_row(requests, lambda: Grace(model, layer, radius=1e-6), [4], max_steps=50, progress=None)
    precise = measure.evaluate(requests, lambda: Grace(model, layer, radius=1e-6), max_steps=50, progress=None)
    assert 0 < sum(record["reliability"] for record in precise) == 4 * row["reliability"]  # none touches another
