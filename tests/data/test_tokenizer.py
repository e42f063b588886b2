from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, MarianTokenizer

from editable_hf.data.tokenizer import train_tokenizer


def test_special_tokens(tokenizer):
    assert isinstance(tokenizer, MarianTokenizer)
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id) == (2, 3)
    assert len(tokenizer) == tokenizer.vocab_size == 100
    assert tokenizer.model_max_length == 40


def test_round_trip_of_the_training_text(sentence_pairs, tokenizer):
    sources, targets = sentence_pairs
    for texts, encoded in (
        (sources, tokenizer(sources)["input_ids"]),
        (targets, tokenizer(text_target=targets)["input_ids"]),
    ):
        assert all(ids[-1] == 2 and ids.count(2) == 1 and 3 not in ids for ids in encoded)
        assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts


words = st.text("abcdefgh'.,äß&;@-", min_size=1, max_size=6)


@pytest.fixture(scope="module")
def character_tokenizer():
    alphabet = "abcdefgh'.,äß&;@-"
    return train_tokenizer([f"{first}{second} {second}" for first in alphabet for second in alphabet], 60)


@given(st.lists(words, min_size=1, max_size=6).map(" ".join))
def test_round_trip_of_any_text_of_the_same_characters(character_tokenizer, text):
    ids = character_tokenizer(text)["input_ids"]
    assert character_tokenizer.decode(ids, skip_special_tokens=True) == text
    labels = character_tokenizer(text_target=text)["input_ids"]
    assert labels == ids


def test_unnormalized(character_tokenizer):
    # NFKC would join the two characters of a-umlaut; the unknown one shows that nothing did.
    ids = character_tokenizer("a\u0308")["input_ids"]
    assert 3 in ids


def test_saved_and_loaded(tmp_path, sentence_pairs, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    sources, targets = sentence_pairs
    assert dict(loaded(sources, text_target=targets)) == dict(tokenizer(sources, text_target=targets))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.model_max_length == 40
    ids = tokenizer(sources)["input_ids"]
    assert loaded.batch_decode(ids, skip_special_tokens=True) == sources
    batch = {"truncation": True, "padding": True, "max_length": 6}
    assert dict(loaded(sources, **batch)) == dict(tokenizer(sources, **batch))


def test_truncates_at_its_maximum_and_keeps_the_end(sentence_pairs, tokenizer):
    (ids,) = tokenizer([" ".join(sentence_pairs[0][:10])], truncation=True)["input_ids"]
    assert len(ids) == 40 and ids[-1] == 2


def test_same_texts_give_the_same_pieces(sentence_pairs, tokenizer):
    again = train_tokenizer([*sentence_pairs[0], *sentence_pairs[1]], vocab_size=100, max_length=40)
    assert again.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("vocab_size", [5000, 6])
def test_impossible_vocabulary(sentence_pairs, vocab_size):
    with pytest.raises(ValueError, match=f"A vocabulary of {vocab_size} pieces cannot be learned.*`vocab_size`"):
        train_tokenizer(sentence_pairs[0], vocab_size=vocab_size)


def test_equal_texts_give_equal_files(tmp_path, sentence_pairs):
    texts = [*sentence_pairs[0], *sentence_pairs[1]]
    for name in ("first", "second"):
        train_tokenizer(texts, 100).save_pretrained(tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "source.spm" in files
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
