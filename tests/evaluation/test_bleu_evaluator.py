from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import reference
import sacrebleu
import torch

from editable_hf import make_edit_requests, rmsprop
from editable_hf.core import rprop
from editable_hf.data.moses import MosesPreprocessor
from editable_hf.evaluation.bleu_evaluator import BleuDrawdownEvaluator
from editable_hf.evaluation.bootstrap import bootstrap_mean
from editable_hf.evaluation.records import read_records

pytestmark = pytest.mark.compat

ALPHA, STEPS, BEAMS, BATCH = 5e-3, 4, 3, 5
NUM_SENTENCES = 12


@pytest.fixture
def test_set(sentence_pairs):
    sources, targets = sentence_pairs
    return sources[:NUM_SENTENCES], targets[:NUM_SENTENCES], [text.capitalize() for text in targets[:NUM_SENTENCES]]


@pytest.fixture
def requests(trained_marian, tokenizer, sentence_pairs):
    """The first does not hold, the second holds already, the third asks for what cannot be reached."""
    sources, targets = sentence_pairs
    own = make_edit_requests(trained_marian, tokenizer, sources[:1], targets=["x"], num_alternatives=1, progress=None)
    best = tokenizer.decode(own["alternatives"][0][0], skip_special_tokens=True)
    rows = make_edit_requests(
        trained_marian,
        tokenizer,
        [sources[3], sources[0], sources[5]],
        targets=[targets[4], best, "book seeks woman the the buys . . ."],
        num_alternatives=4,
        progress=None,
    )
    assert len(rows) == 3
    return rows


@pytest.fixture
def make_evaluator(trained_marian, tokenizer, test_set):
    def build(model=None, layers="last_decoder_layer"):
        model = trained_marian if model is None else model
        return BleuDrawdownEvaluator(model, tokenizer, *test_set, layers=layers, num_beams=BEAMS, batch_size=BATCH)

    return build


@pytest.fixture
def translate(one_by_one):
    def translate(model, tokenizer, sources, batch_size=BATCH):
        return one_by_one(model, tokenizer, sources, BEAMS, batch_size)

    return translate


def corpus_scores(translations, references, texts):
    moses = MosesPreprocessor("en")
    tokens = sacrebleu.corpus_bleu(translations, [references], lowercase=True, tokenize="none", force=True).score
    plain = [moses.detokenize(text) for text in translations]
    return tokens, sacrebleu.corpus_bleu(plain, [texts], lowercase=True).score


def brute_force(model, request, names, alpha):
    """The model after the edit, as a copy of its own, by the formulas of the paper."""
    source = torch.tensor([request["input_ids"]])
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}

    def constraint(model):
        start = model.config.decoder_start_token_id
        return reference.sequence_constraint(model, inputs, request["labels"], request["alternatives"], start)

    editor = lambda grads: reference.rmsprop(grads, alpha, 0.5)  # noqa: E731
    params, losses = reference.edit_copy(model, constraint, names, editor, STEPS)
    changed = copy.deepcopy(model)
    assert not changed.load_state_dict(params, strict=False).unexpected_keys
    return changed, losses


@pytest.mark.parametrize(("layers", "alpha"), [("last_decoder_layer", 2e-3), ("*", 4e-4)])
def test_records_are_those_of_brute_force(
    make_evaluator, trained_marian, tokenizer, test_set, requests, translate, layers, alpha
):
    sources, references, texts = test_set
    state = {name: value.clone() for name, value in trained_marian.state_dict().items()}
    evaluator = make_evaluator(layers=layers)
    records = evaluator.evaluate(requests, rmsprop(alpha), max_steps=STEPS, progress=None)
    assert all(torch.equal(value, state[name]) for name, value in trained_marian.state_dict().items())
    before = translate(trained_marian, tokenizer, sources)
    assert evaluator.before == before
    assert (evaluator.bleu, evaluator.bleu_detok) == pytest.approx(corpus_scores(before, references, texts), rel=1e-9)
    worst = 0.0
    for request, record in zip(requests, records, strict=True):
        model, losses = brute_force(trained_marian, request, evaluator.layers, alpha)
        after = translate(model, tokenizer, sources)
        bleu, bleu_detok = corpus_scores(after, references, texts)
        worst = max(worst, abs(record["bleu"] - bleu), abs(record["bleu_detok"] - bleu_detok))
        assert [record[key] for key in ("id", "source", "target")] == [
            request[key] for key in ("id", "source", "target")
        ]
        assert record["bleu"] == pytest.approx(bleu, abs=1e-9)
        assert record["bleu_detok"] == pytest.approx(bleu_detok, abs=1e-9)
        changed = [i for i in range(NUM_SENTENCES) if after[i] != before[i]]
        assert record["num_changed"] == len(changed)
        assert record["changed"] == [{"index": i, "after": after[i]} for i in changed]
        assert record["num_steps"] == len(losses) - 1
        assert (record["loss_before"], record["loss_after"]) == pytest.approx((losses[0], losses[-1]), abs=1e-6)
        assert record["success"] == (losses[-1] <= 0)
        assert [record["before"]] == translate(trained_marian, tokenizer, [request["source"]], 1)
        assert [record["after"]] == translate(model, tokenizer, [request["source"]], 1)
        assert record["verified"] == (record["after"] == request["target"])
    print(f"largest difference in BLEU: {worst:.1e}")
    assert [record["success"] for record in records] == [True, True, False]
    assert 0 < records[0]["num_changed"] < NUM_SENTENCES
    assert records[0]["bleu"] != evaluator.bleu
    assert records[1]["num_steps"] == records[1]["num_changed"] == 0
    assert records[1]["bleu"] == evaluator.bleu


def without_time(records):
    return [{key: value for key, value in record.items() if key != "edit_seconds"} for record in records]


def test_edit_that_fails_is_measured_as_it_was_before_that(make_evaluator, requests, breaking_editor):
    evaluator = make_evaluator()
    expected = without_time(evaluator.evaluate(requests, rprop(1e-6), max_steps=2, progress=None))
    records = without_time(evaluator.evaluate(requests, breaking_editor, max_steps=5, progress=None))
    reasons = [record.pop("failure", None) for record in records]
    assert records == expected and [record["num_steps"] for record in records] == [2, 0, 2]
    assert reasons[0].endswith(" is not finite after step 3") and reasons[1] is None and reasons[2] == reasons[0]


def test_the_same_again(make_evaluator, requests):
    first, again = (make_evaluator().evaluate(requests, rmsprop(2e-3), max_steps=STEPS, progress=None) for _ in "ab")
    assert without_time(first) == without_time(again) and first[0]["num_changed"] > 0


def translations_after(evaluator, record):
    after = {change["index"]: change["after"] for change in record["changed"]}
    return [after.get(index, text) for index, text in enumerate(evaluator.before)]


def drawdowns_by_hand(evaluator, records, test_set, count):
    """The first of the mean drawdowns for test sets and sets of edits that are put together anew, and scored anew."""
    rng, (_, references, texts) = np.random.default_rng(0), test_set
    drawn = [rng.integers(NUM_SENTENCES, size=NUM_SENTENCES) for _ in range(1000)]
    chosen = rng.integers(len(records), size=(1000, len(records)))
    outputs, means = [evaluator.before, *(translations_after(evaluator, record) for record in records)], []
    for rows, edits in list(zip(drawn, chosen, strict=True))[:count]:
        columns = [[column[index] for index in rows] for column in (references, texts)]
        before, *after = (corpus_scores([each[index] for index in rows], *columns)[0] for each in outputs)
        means.append(np.mean([abs(before - after[edit]) for edit in edits]))
    return means


def test_summary(make_evaluator, test_set):
    evaluator = make_evaluator()
    spoiled = [{"index": index, "after": "x"} for index in range(6)]
    wrong = [i for i, pair in enumerate(zip(evaluator.before, test_set[1], strict=True)) if len(set(pair)) > 1]
    mended = [{"index": index, "after": test_set[1][index]} for index in wrong]
    record = {"verified": True, "success": True, "edit_seconds": 0.5}
    records = [
        {**record, "num_steps": 3, "changed": spoiled},
        {**record, "num_steps": 5, "changed": mended, "verified": False},
        {**record, "num_steps": 0, "changed": [], "success": False, "failure": "nan"},
    ]
    for each in records:
        each["num_changed"] = len(each["changed"])
        each["bleu"], each["bleu_detok"] = corpus_scores(translations_after(evaluator, each), *test_set[1:])
    worse, better = (evaluator.bleu - each["bleu"] for each in records[:2])
    assert better < 0 < worse
    row = evaluator.summarize("ours", records, max_steps=10)
    assert row["name"] == "ours" and row["max_steps"] == 10
    assert row["bleu"] == evaluator.bleu
    assert row["bleu_drawdown"] == pytest.approx((worse - better) / 3)
    assert row["bleu_drawdown_signed"] == pytest.approx((worse + better) / 3)
    assert row["bleu_drawdown_moved"] == pytest.approx((worse - better) / 2)  # the third edit took no step
    detok = [abs(evaluator.bleu_detok - each["bleu_detok"]) for each in records]
    assert row["bleu_detok_drawdown"] == pytest.approx(sum(detok) / 3)
    assert row["success_rate"] == pytest.approx(2 / 3) and row["verified_rate"] == pytest.approx(2 / 3)
    assert row["num_steps"] == pytest.approx(8 / 3) and row["num_failures"] == 1
    assert row["already_satisfied"] == 0  # no step, but no success either
    assert row["outputs_changed"] == pytest.approx((6 + len(mended)) / 3 / NUM_SENTENCES)
    assert (row["num_edits"], row["num_sentences"]) == (3, NUM_SENTENCES)
    samples = evaluator.resampled(records)["bleu_drawdown"]
    np.testing.assert_allclose(samples[:100], drawdowns_by_hand(evaluator, records, test_set, 100), atol=1e-9)
    low, high = row["intervals"]["bleu_drawdown"]
    assert [low, high] == np.percentile(samples, [2.5, 97.5]).tolist() and low < row["bleu_drawdown"] < high
    assert row["intervals"]["outputs_changed"] == [0, 6 / NUM_SENTENCES]  # over the edits alone
    json.dumps(row)


def test_edits_that_took_no_step_have_no_drawdown(make_evaluator, requests):
    evaluator = make_evaluator()
    records = evaluator.evaluate(requests.select([1]), rmsprop(ALPHA), progress=None)
    row = evaluator.summarize("held", records)
    assert (row["bleu_drawdown"], row["outputs_changed"], row["already_satisfied"]) == (0.0, 0.0, 1.0)
    assert row["intervals"]["bleu_drawdown"] == [0.0, 0.0]


def test_interrupted_evaluation_continues(make_evaluator, requests, tmp_path):
    evaluator, path = make_evaluator(), tmp_path / "edits.jsonl"
    options = {"max_steps": STEPS, "path": path, "progress": None}
    whole = evaluator.evaluate(requests, rmsprop(ALPHA), **options)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 and [json.loads(line) for line in lines] == whole
    path.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])

    measured = []
    measure = evaluator._measure
    evaluator._measure = lambda rows, *args: measured.extend(row["id"] for row in rows) or measure(rows, *args)
    again = evaluator.evaluate(requests, rmsprop(ALPHA), **options)
    assert measured == requests["id"][1:]
    assert without_time(again) == without_time(whole)
    assert again[0] == whole[0]
    assert read_records(path) == again
    evaluator.evaluate(requests, rmsprop(ALPHA), **options)
    assert len(measured) == 2


def test_fewer_requests_than_records(make_evaluator, requests, tmp_path):
    evaluator, options = make_evaluator(), {"path": tmp_path / "edits.jsonl", "progress": None}
    both = evaluator.evaluate(requests.select([0, 1]), rmsprop(ALPHA), **options)
    assert evaluator.evaluate(requests.select([0]), rmsprop(ALPHA), **options) == both[:1]


def test_records_of_other_requests(make_evaluator, requests, tmp_path):
    evaluator, options = make_evaluator(), {"path": tmp_path / "edits.jsonl", "progress": None}
    evaluator.evaluate(requests.select([1]), rmsprop(ALPHA), **options)
    with pytest.raises(ValueError, match="edits.jsonl holds the edit of .* of other requests"):
        evaluator.evaluate(requests, rmsprop(ALPHA), **options)


def test_read_records(tmp_path):
    path = tmp_path / "records.jsonl"
    assert read_records(path) == []
    path.write_text('{"a": "ä\u2028b"}\n{"a": 2}\n{"a', encoding="utf-8")
    assert read_records(path) == [{"a": "ä\u2028b"}, {"a": 2}]
    assert path.read_text(encoding="utf-8") == '{"a": "ä\u2028b"}\n{"a": 2}\n'
    path.write_text('{"a')
    assert read_records(path) == [] and path.read_text() == ""


# Bootstrap


def test_bootstrap_of_two_values():
    # 4 resamples are equally likely: the means are 0, 1/2, 1/2, 1, so 2.5% and 97.5% lie at the ends.
    assert bootstrap_mean([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert bootstrap_mean([3.0, 3.0, 3.0]) == (3.0, 3.0, 3.0)


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    mean, low, high = bootstrap_mean(values)
    width = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - width, mean + width), abs=0.1 * width)
    assert bootstrap_mean(values) == (mean, low, high)
    assert bootstrap_mean(values, seed=1) != (mean, low, high)


def test_bootstrap_of_nothing():
    with pytest.raises(ValueError, match="There is no value to average"):
        bootstrap_mean([])
