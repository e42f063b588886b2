import pytest
import torch

from editable_hf import edit, edited, make_edit_requests, rmsprop
from editable_hf.evaluation import verified_edit as module
from editable_hf.evaluation.verified_edit import decode, joint_constraint, verified_edit
from editable_hf.review.translations import review_translations

LAYER = "last_decoder_layer"


@pytest.fixture
def wrong(trained_marian, tokenizer, sentence_pairs):
    """Requests of which the model knows two alternatives only: the target is the translation of the next sentence."""
    sources, targets = sentence_pairs
    requests = make_edit_requests(
        trained_marian, tokenizer, sources[:3], targets=targets[1:4], num_alternatives=2, progress=None
    )
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=20, length_penalty=1.0)
    return requests.to_list()


def test_verified_is_what_generate_says(trained_marian, tokenizer, wrong):
    state = {name: value.clone() for name, value in trained_marian.state_dict().items()}
    outcomes = [verified_edit(trained_marian, tokenizer, [each], rmsprop(1e-2), LAYER, max_steps=30) for each in wrong]
    for request, outcome in zip(wrong, outcomes, strict=True):
        with edited(trained_marian, outcome.result):
            inputs = tokenizer(request["source"], return_tensors="pt")
            output = trained_marian.generate(**inputs, num_beams=3, early_stopping=True, max_new_tokens=20)
        (text,) = tokenizer.batch_decode(output, skip_special_tokens=True)
        assert outcome.outputs == [text]
        assert outcome.verified == [text == request["target"]] and outcome.all_verified == outcome.verified[0]
        assert outcome.result.success
    assert any(outcome.all_verified for outcome in outcomes)
    assert all(torch.equal(value, state[name]) for name, value in trained_marian.state_dict().items())


DECODING = {
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[4], [5], [6]]},
    "length_penalty": {"num_beams": 4, "length_penalty": -3.0},
    "min_new_tokens": {"min_new_tokens": 12, "num_beams": 2},
    "early_stopping": {"num_beams": 6, "early_stopping": "never", "length_penalty": 2.0},
    "max_length": {"max_length": 4, "max_new_tokens": None},
}


@pytest.mark.parametrize("name", DECODING)
def test_decoding_is_that_of_the_generation_config(trained_marian, tokenizer, wrong, sentence_pairs, name):
    model, sources = trained_marian, sentence_pairs[0][:6]

    def generate():
        outputs = [model.generate(**tokenizer(source, return_tensors="pt"))[0] for source in sources]
        return tokenizer.batch_decode(outputs, skip_special_tokens=True)

    model.generation_config.update(num_beams=1, early_stopping=False)
    plain = generate()
    model.generation_config.update(**DECODING[name])
    before = generate()
    assert before != plain
    outcome = verified_edit(model, tokenizer, wrong[:1], rmsprop(1e-2), LAYER, max_steps=30)
    with edited(model, outcome.result):
        after = generate()
    assert outcome.outputs == [after[sources.index(wrong[0]["source"])]]
    changes = review_translations(model, tokenizer, outcome.result.params, sources).changes
    assert {each.index: (each.before, each.after) for each in changes} == {
        index: pair for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]
    }


def test_resized_vocabulary_and_a_start_that_is_neither_padding_nor_end(trained_marian, tokenizer, wrong):
    model, start = trained_marian, tokenizer.bos_token_id
    assert start not in (model.config.pad_token_id, model.config.eos_token_id)
    model.resize_token_embeddings(model.config.vocab_size + 8, mean_resizing=False)
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = start
    source, target = wrong[0]["source"], wrong[0]["target"]
    requests = make_edit_requests(model, tokenizer, [source], targets=[target], num_alternatives=3, progress=None)
    outcome = verified_edit(model, tokenizer, requests, rmsprop(1e-2), LAYER, max_steps=60)
    assert outcome.all_verified and outcome.result.num_steps > 0
    with edited(model, outcome.result):
        (row,) = model.generate(**tokenizer(source, return_tensors="pt"))
    assert row[0] == start and tokenizer.decode(row[1:], skip_special_tokens=True) == target
    (change,) = review_translations(model, tokenizer, outcome.result.params, [source]).changes
    assert change.after == target


def test_output_becomes_an_alternative(trained_marian, tokenizer, wrong):
    once = [
        verified_edit(trained_marian, tokenizer, [each], rmsprop(1e-3), LAYER, max_steps=100, max_rounds=1)
        for each in wrong
    ]
    index = next(i for i, outcome in enumerate(once) if outcome.result.success and not outcome.all_verified)
    request = wrong[index]
    assert once[index].requests == [{**request, "margin": 0.0}] and once[index].num_rounds == 1
    more = verified_edit(trained_marian, tokenizer, [request], rmsprop(1e-3), LAYER, max_steps=100, max_rounds=20)
    added = more.requests[0]["alternatives"][len(request["alternatives"]) :]
    assert len(added) >= 1 and tokenizer.decode(added[0], skip_special_tokens=True) == once[index].outputs[0]
    assert more.num_rounds > 1 and more.all_verified
    # One edit with all the alternatives repeats the result.
    constraint = joint_constraint(more.requests, trained_marian, 1.0)
    again = edit(trained_marian, constraint, rmsprop(1e-3), LAYER, 100)
    assert again.num_steps == more.result.num_steps
    assert all(torch.equal(value, more.result.params[name]) for name, value in again.params.items())


def test_target_that_beam_search_loses_gets_a_margin(trained_marian, tokenizer, wrong, monkeypatch):
    # The model's output is an alternative, and beaten, and decoded all the same: as if beam search lost the target.
    (request,) = wrong[:1]
    original = module.decode
    misled = iter([request["alternatives"][0], request["alternatives"][0]])
    monkeypatch.setattr(module, "decode", lambda *args: next(misled, None) or original(*args))
    outcome = verified_edit(trained_marian, tokenizer, [request], rmsprop(3e-3), LAYER, max_steps=100, max_rounds=20)
    assert outcome.num_rounds >= 3 and outcome.requests[0]["margin"] > 0.1
    monkeypatch.undo()
    plain = joint_constraint([request | {"alternatives": outcome.requests[0]["alternatives"]}], trained_marian, 1.0)
    with edited(trained_marian, outcome.result):
        value = edit(trained_marian, plain, rmsprop(1e-3), LAYER, 0).history[0]
    assert value <= -outcome.requests[0]["margin"] + 1e-9
    assert value + outcome.requests[0]["margin"] == pytest.approx(outcome.result.history[-1], abs=1e-9)


def test_round_that_fails_keeps_the_one_before(trained_marian, tokenizer, wrong, monkeypatch):
    (request,) = wrong[:1]
    monkeypatch.setattr(module, "decode", lambda *args: request["alternatives"][0])
    outcome = verified_edit(trained_marian, tokenizer, [request], rmsprop(1e-3), LAYER, max_steps=12, max_rounds=50)
    assert 1 < outcome.num_rounds < 50 and outcome.result.success and not outcome.all_verified


def test_several_requests_at_once(trained_marian, tokenizer, wrong):
    outcome = verified_edit(trained_marian, tokenizer, wrong, rmsprop(3e-3), LAYER, max_steps=100, max_rounds=1)
    assert outcome.result.success and len(outcome.outputs) == len(outcome.verified) == 3
    model = trained_marian.eval()
    with edited(model, outcome.result):
        for request in wrong:
            assert edit(model, joint_constraint([request], model, 1.0), rmsprop(1e-3), LAYER, 0).success


def test_edit_that_fails_ends_it(trained_marian, tokenizer, wrong):
    outcome = verified_edit(trained_marian, tokenizer, wrong[:1], rmsprop(1e-9), LAYER, max_steps=1)
    assert not outcome.result.success and outcome.num_rounds == 1 and not outcome.all_verified


def test_length_penalty_is_that_of_decoding(trained_marian, tokenizer, wrong, monkeypatch):
    seen, original = [], module.request_constraint

    def watched(request, model, length_penalty):
        seen.append(length_penalty)
        return original(request, model, length_penalty)

    monkeypatch.setattr(module, "request_constraint", watched)
    options = {"max_steps": 1, "max_rounds": 1}
    trained_marian.generation_config.length_penalty = 0.6
    verified_edit(trained_marian, tokenizer, wrong[:1], rmsprop(1e-3), LAYER, **options)
    verified_edit(trained_marian, tokenizer, wrong[:1], rmsprop(1e-3), LAYER, length_penalty=0.0, **options)
    trained_marian.generation_config.update(num_beams=1, early_stopping=False)
    verified_edit(trained_marian, tokenizer, wrong[:1], rmsprop(1e-3), LAYER, **options)
    trained_marian.generation_config.update(num_beams=2, length_penalty=None)  # transformers' default is 1
    verified_edit(trained_marian, tokenizer, wrong[:1], rmsprop(1e-3), LAYER, **options)
    assert seen == [0.6, 0.0, 0.0, 1.0]


def test_decode_keeps_the_mode(trained_marian, tokenizer, wrong):
    trained_marian.train()
    ids = decode(trained_marian, tokenizer, wrong[0])
    assert trained_marian.training and ids[-1] == tokenizer.eos_token_id


def test_errors(trained_marian, tokenizer, wrong):
    with pytest.raises(ValueError, match="at least one request and `max_rounds` of at least 1, got 0 and 5"):
        verified_edit(trained_marian, tokenizer, [], rmsprop(1e-3), LAYER)
    with pytest.raises(ValueError, match="got 1 and 0"):
        verified_edit(trained_marian, tokenizer, wrong[:1], rmsprop(1e-3), LAYER, max_rounds=0)
