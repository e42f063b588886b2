from __future__ import annotations

import logging

import pytest
import torch
from memo_checks import BATCH, LAST, check, perturb, stock, translator_of_tokens
from tiny_models import t5_config
from transformers import T5ForConditionalGeneration

from editable_hf import make_edit_requests, rmsprop
from editable_hf.evaluation.bleu_edits import BleuDrawdownEvaluator
from editable_hf.evaluation.memo_translator import MemoTranslator
from editable_hf.evaluation.prefix_memo import FinishedSentences, MemoStatistics
from editable_hf.evaluation.split_model import MemoUnavailable

SCALES = (0.0, 0.01, 0.1, 0.3, 1.0, 3.0)


@pytest.mark.parametrize("num_beams", [1, 2, 5])
@pytest.mark.parametrize("kind", ["marian", "bart"])
def test_equals_generate(trained_marian, bart, tokenizer, sources, num_beams, kind):
    model = {"marian": trained_marian, "bart": bart}[kind]
    translator = translator_of_tokens(model, tokenizer, sources, num_beams, ratio=1.5)
    edits = perturb(model, LAST, SCALES)
    expected = stock(translator, edits)
    lengths = {row.count("-") for rows in expected for row in rows}
    assert len(lengths) > 4 and max(lengths) > 16  # keys are dropped from the pool after 8 and after 16 steps
    assert expected[0] == translator() and len({tuple(rows) for rows in expected}) >= 5
    for together in (1, 4, 6):
        memo = MemoTranslator(translator, LAST, edits_together=together)
        assert memo(edits) == expected
        assert memo.statistics.computed < memo.statistics.row_steps


@pytest.mark.parametrize(
    ("layers", "num_kept"),
    [
        ("decoder.layers.2.fc1", 2),
        ("model.decoder.layers.2.fc1.bias", 2),
        ("decoder.layers.2.final_layer_norm", 2),
        ("decoder.layers.1.encoder_attn_layer_norm", 1),
        ("decoder.layers.2.self_attn.k_proj", 2),
        ("decoder.layers.2.encoder_attn", 2),
        (["decoder.layers.1", "decoder.layers.2"], 1),
        (["decoder.layers.1.fc2", "decoder.layers.2.encoder_attn.v_proj"], 1),
    ],
)
def test_parts_of_layers(bart, tokenizer, sources, layers, num_kept):
    assert check(bart, tokenizer, sources, layers).split.num_kept == num_kept


def test_head_alone(bart, tokenizer, sources):
    bart.lm_head.weight = torch.nn.Parameter(bart.lm_head.weight.detach().clone())  # no longer the embedding
    assert check(bart, tokenizer, sources, "lm_head").split.num_kept == 3


@pytest.mark.parametrize(
    "options",
    [
        {"eos_token_id": [2, 30, 31]},
        {"eos_token_id": None, "forced_eos_token_id": None},
        {"length_penalty": 2.0},
        {"length_penalty": -1.0, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
        {"min_new_tokens": 6, "forced_bos_token_id": 5},
    ],
)
@pytest.mark.parametrize("num_beams", [1, 4])
def test_options_of_generate(bart, tokenizer, sources, options, num_beams):
    bart.generation_config.update(**options)
    check(bart, tokenizer, sources, LAST, num_beams)


def test_finished_sentences():
    finished = FinishedSentences([2, 7], num_sentences=2, num_beams=2, device=torch.device("cpu"))
    # Six continuations of each sentence, best first: the third and later ones are not taken.
    ends = torch.tensor([7, 5, 2, 2, 5, 5, 5, 5, 2, 7, 2, 2])
    stop = finished(torch.stack([torch.zeros_like(ends), ends], dim=1), None)
    assert not stop.any() and stop.shape == ends.shape
    assert finished.ended.tolist() == [1, 0] and finished.alive.all()
    finished(ends[:, None], None)
    assert finished.alive.tolist() == [False, True]


# Memory and work


def test_little_memory(trained_marian, tokenizer, sources):
    translator, edits = translator_of_tokens(trained_marian, tokenizer, sources), perturb(trained_marian, LAST, SCALES)
    little, ample = (MemoTranslator(translator, LAST, gigabytes=size, edits_together=2) for size in (1e-6, 1.0))
    assert little.group_size == 1 and ample.group_size > 1
    assert little(edits[1:3]) == ample(edits[1:3]) and little.statistics.drops == 0  # no memo for a second edit
    little.group_size = len(edits)
    assert little(edits) == ample(edits) == stock(translator, edits)
    assert little.statistics.drops == 3 * 2  # of three batches, before the second and the third pair of edits
    assert ample.statistics.drops == 0 and ample.statistics.computed < little.statistics.computed
    assert ample.statistics.peak_nodes > little.statistics.peak_nodes


@pytest.mark.parametrize("together", [1, 4])
def test_equal_edits_are_computed_once(bart, tokenizer, sources, together):
    translator = translator_of_tokens(bart, tokenizer, sources)
    edit = perturb(bart, LAST, (0.3,))
    once, often = (MemoTranslator(translator, LAST, edits_together=together) for _ in range(2))
    assert often(4 * edit) == 4 * once(edit)
    assert often.statistics.row_steps == 4 * once.statistics.row_steps
    assert often.statistics.computed == once.statistics.computed
    assert often.statistics.hit_rate > 0.75


def test_statistics_count_what_was_computed(bart, tokenizer, sources):
    memo = MemoTranslator(translator_of_tokens(bart, tokenizer, sources), LAST)
    rows = {"kept": 0, "edited": 0}
    layers = bart.model.decoder.layers
    layers[0].fc1.register_forward_hook(lambda *args: rows.update(kept=rows["kept"] + args[2].shape[0]))
    layers[2].activation_fn.register_forward_hook(lambda *args: rows.update(edited=rows["edited"] + len(args[2])))
    memo(perturb(bart, LAST, SCALES))
    statistics = memo.statistics
    assert rows["kept"] == statistics.computed
    assert statistics.computed < 0.8 * statistics.row_steps and statistics.row_steps <= rows["edited"]
    assert statistics.as_dict()["hit_rate"] == 1 - statistics.computed / statistics.row_steps
    assert MemoStatistics().hit_rate == 0


def test_wrong_options(bart, tokenizer, sources):
    for options in ({"gigabytes": 0}, {"edits_together": 0}):
        with pytest.raises(ValueError, match="`gigabytes` must be above 0 and `edits_together` at least 1"):
            MemoTranslator(translator_of_tokens(bart, tokenizer, sources), LAST, **options)


def test_nothing_to_do(bart, tokenizer, sources):
    assert MemoTranslator(translator_of_tokens(bart, tokenizer, sources), LAST)([]) == []
    empty = MemoTranslator(translator_of_tokens(bart, tokenizer, []), LAST)
    assert empty(perturb(bart, LAST, (0.1, 1.0))) == [[], []]


# The model is left as it was


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, state):
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_model_is_unchanged(trained_marian, tokenizer, sources):
    for module in trained_marian.modules():
        if "dropout" in vars(module):
            module.dropout = 0.9
    translator, state = translator_of_tokens(trained_marian, tokenizer, sources), snapshot(trained_marian)
    edits = perturb(trained_marian, LAST, (0.1, 1.0))
    expected = stock(translator, edits)
    trained_marian.train()
    assert MemoTranslator(translator, LAST)(edits) == expected
    assert_unchanged(trained_marian, state)


@pytest.mark.parametrize("place", ["", "decoder.layers.0", "decoder.layers.1.fc1", "decoder.layers.0.self_attn"])
def test_model_is_unchanged_after_an_error(trained_marian, tokenizer, sources, place):
    translator, state = translator_of_tokens(trained_marian, tokenizer, sources), snapshot(trained_marian)
    memo, calls = MemoTranslator(translator, LAST, edits_together=1), []
    edits = perturb(trained_marian, LAST, (0.1, 1.0))
    expected = memo(edits)

    def fail(*args):
        calls.append(args)
        if len(calls) == 12:
            raise ConnectionError("interrupted")

    hook = trained_marian.get_submodule(f"model.{place}".rstrip(".")).register_forward_pre_hook(fail)
    trained_marian.train()
    with pytest.raises(ConnectionError, match="interrupted"):
        memo(edits)
    hook.remove()
    assert_unchanged(trained_marian, state)
    assert memo(edits) == expected


# What the memo does not serve


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        (["encoder.layers.1.fc2", "decoder.layers.1"], "the edit changes the encoder"),
        ("model.shared", "the edit changes the encoder, the embeddings"),  # tied to the head
        ("decoder.layers.0.fc2", "or the first decoder layer"),
    ],
)
def test_edits_that_leave_nothing_in_common(make_evaluator, trained_marian, requests, caplog, layers, reason):
    assert_falls_back(make_evaluator, requests, caplog, reason, layers=layers)


def test_decoders_of_another_kind(make_evaluator, tokenizer, requests, caplog):
    config = t5_config()
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config).double().eval()
    assert_falls_back(make_evaluator, requests, caplog, "more than one hidden state", model=model)


def assert_falls_back(make_evaluator, requests, caplog, reason, **options):
    with caplog.at_level(logging.WARNING):
        evaluator = make_evaluator(**options)
    (message,) = [record.getMessage() for record in caplog.records if "prefix memo" in record.getMessage()]
    assert message.startswith("Each edit is measured with `generate`") and reason in message
    with pytest.raises(MemoUnavailable, match=reason):
        MemoTranslator(evaluator._translator, evaluator.layers)
    plain = make_evaluator(memo_gigabytes=None, **options)
    assert evaluator.memo_statistics is plain.memo_statistics is None
    options = {"max_steps": 1, "progress": None}
    records = [e.evaluate(requests.select([0]), rmsprop(2e-3), **options) for e in (evaluator, plain)]
    assert without_time(records[0]) == without_time(records[1])


# Drawdown


@pytest.fixture
def requests(trained_marian, tokenizer, sentence_pairs):
    """One that holds already among three that do not."""
    sources, targets = sentence_pairs
    own = make_edit_requests(trained_marian, tokenizer, sources[:1], targets=["x"], num_alternatives=1, progress=None)
    best = tokenizer.decode(own["alternatives"][0][0], skip_special_tokens=True)
    wanted = [targets[4], best, targets[6], targets[7]]
    chosen = [sources[3], sources[0], sources[5], sources[8]]
    return make_edit_requests(trained_marian, tokenizer, chosen, targets=wanted, num_alternatives=4, progress=None)


@pytest.fixture
def make_evaluator(trained_marian, tokenizer, sentence_pairs, sources):
    references = sentence_pairs[1][: len(sources)]

    def build(model=None, **options):
        return BleuDrawdownEvaluator(
            trained_marian if model is None else model,
            *(tokenizer, sources, references, references),
            **{"layers": LAST, "num_beams": 2, "batch_size": BATCH, **options},
        )

    return build


def without_time(records):
    return [{key: value for key, value in record.items() if key != "edit_seconds"} for record in records]


def test_drawdown_with_and_without_memo(make_evaluator, requests, tmp_path):
    plain, options = make_evaluator(memo_gigabytes=None), {"max_steps": 3, "progress": None}
    expected = plain.evaluate(requests, rmsprop(5e-3), path=tmp_path / "plain.jsonl", **options)
    assert [record["num_steps"] > 0 for record in expected] == [True, False, True, True]
    assert sum(record["num_changed"] > 0 for record in expected) >= 2

    path = tmp_path / "memo.jsonl"
    records = make_evaluator().evaluate(requests, rmsprop(5e-3), path=path, **options)
    assert without_time(records) == without_time(expected)

    # A run that was killed while it wrote the second record, continued by another process.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:20])
    evaluator = make_evaluator()
    again = evaluator.evaluate(requests, rmsprop(5e-3), path=path, **options)
    assert again[0] == records[0] and without_time(again) == without_time(expected)
    assert len(path.read_bytes().splitlines()) == 4
    assert 0 < evaluator.memo_statistics["hit_rate"] < 1
