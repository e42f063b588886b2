from __future__ import annotations

import pytest
import torch

from editable_hf.evaluation.translator import Translator

pytestmark = pytest.mark.compat


@pytest.fixture
def sources(sentence_pairs):
    # Of many lengths, in no order of length, one of them twice.
    sources = sentence_pairs[0]
    return [sources[1], "ein", f"{sources[2]} {sources[3]}", sources[4], "der hund", sources[1], sources[0]]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("keep_encoded", [True, False])
def test_equals_plain_generate(trained_marian, tokenizer, sources, one_by_one, batch_size, num_beams, keep_encoded):
    options = {"num_beams": num_beams, "batch_size": batch_size}
    translator = Translator(trained_marian, tokenizer, sources, keep_encoded=keep_encoded, **options)
    expected = one_by_one(trained_marian, tokenizer, sources, **options)
    assert translator() == expected
    assert translator() == expected  # from kept encoder outputs
    assert expected[1] != expected[2] and expected[0] == expected[5]


def test_follows_the_decoder(trained_marian, tokenizer, sources, one_by_one):
    translator = Translator(trained_marian, tokenizer, sources, num_beams=2)
    before = translator()
    with torch.no_grad():
        trained_marian.model.decoder.layers[1].fc2.bias[::2] += 1.5
    after = translator()
    assert after != before
    assert after == one_by_one(trained_marian, tokenizer, sources, 2, 64)


def test_follows_the_encoder_only_if_it_is_not_kept(trained_marian, tokenizer, sources, one_by_one):
    translators = [Translator(trained_marian, tokenizer, sources, keep_encoded=keep) for keep in (True, False)]
    before = [translator() for translator in translators]
    with torch.no_grad():
        trained_marian.model.encoder.layers[1].fc2.bias[::2] += 1.5
    kept, followed = (translator() for translator in translators)
    assert kept == before[0] == before[1]
    assert followed != before[1]
    assert followed == one_by_one(trained_marian, tokenizer, sources, 5, 64)


def test_mode_is_restored(trained_marian, tokenizer, sources):
    for module in trained_marian.modules():
        if "dropout" in vars(module):
            module.dropout = 0.9
    translator = Translator(trained_marian, tokenizer, sources)
    expected = translator()
    trained_marian.train()
    assert translator() == expected
    assert trained_marian.training


def test_no_sentence(trained_marian, tokenizer):
    assert Translator(trained_marian, tokenizer, [])() == []


def test_limit_of_a_model_that_never_stops(trained_marian, tokenizer):
    trained_marian.final_logits_bias[0, tokenizer.eos_token_id] = -1e4
    (text,) = Translator(trained_marian, tokenizer, ["ein buch"], num_beams=1)()
    limit = int(1.5 * len(tokenizer("ein buch")["input_ids"])) + 10
    assert limit - 5 <= len(tokenizer(text_target=text)["input_ids"]) <= limit + 1
