"""CTranslate2 translates as the model that was converted for it, and where it does not, that is found."""

import copy
import json

import ctranslate2
import pytest
import torch
from transformers import AutoTokenizer, MarianConfig, MarianMTModel, MarianTokenizer

from editable_hf.export import compare_translations, convert_to_ctranslate2


def translated(folder, tokenizer, sentences):
    """By CTranslate2 alone, as its documentation has it."""
    rows = [tokenizer.convert_ids_to_tokens(row) for row in tokenizer(sentences)["input_ids"]]
    results = ctranslate2.Translator(str(folder)).translate_batch(rows, beam_size=3, max_decoding_length=30)
    return [tokenizer.decode(tokenizer.convert_tokens_to_ids(each.hypotheses[0])) for each in results]


@pytest.fixture
def model(trained_marian):
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=30)
    return trained_marian.float()


def test_marian_that_starts_from_the_end_of_a_sentence(model, tokenizer, sentence_pairs, tmp_path):
    sources, targets = (side[:50] for side in sentence_pairs)
    weights = copy.deepcopy(model.state_dict())
    convert_to_ctranslate2(model, tokenizer, tmp_path / "out")
    assert compare_translations(model, tokenizer, tmp_path / "out", sources) == []
    ours = tokenizer.batch_decode(
        model.generate(**tokenizer(sources, return_tensors="pt", padding=True)), skip_special_tokens=True
    )
    own_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert translated(tmp_path / "out", own_tokenizer, sources) == ours
    assert sum(map(str.__eq__, ours, targets)) > 25  # it has something to say
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not hasattr(model.config, "normalize_before")


def test_differences_are_found(model, tokenizer, sentence_pairs, tmp_path):
    convert_to_ctranslate2(model, tokenizer, tmp_path / "out")
    with torch.no_grad():
        model.model.decoder.layers[1].fc2.weight[::2] *= 1.5
    sources = sentence_pairs[0][:40]
    now = tokenizer.batch_decode(
        model.generate(**tokenizer(sources, return_tensors="pt", padding=True)), skip_special_tokens=True
    )
    before = translated(tmp_path / "out", tokenizer, sources)
    differ = [texts for texts in zip(sources, now, before, strict=True) if texts[1] != texts[2]]
    assert differ and list(map(tuple, compare_translations(model, tokenizer, tmp_path / "out", sources))) == differ


@pytest.fixture
def opus(model, tokenizer, tmp_path):
    """The same words as OPUS-MT has them: padding, zeros, stands last, and decoding starts from it."""
    tokenizer.save_pretrained(tmp_path)
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    order = ["</s>", "<unk>", *(each for each in pieces if each not in ("</s>", "<unk>", "<pad>")), "<pad>"]
    (tmp_path / "opus.json").write_text(json.dumps({piece: index for index, piece in enumerate(order)}))
    files = {"source_spm": "source.spm", "target_spm": "target.spm", "vocab": "opus.json"}
    own_tokenizer = MarianTokenizer(**{key: f"{tmp_path}/{name}" for key, name in files.items()}, model_max_length=40)
    pad = len(order) - 1
    special = {"pad_token_id": pad, "decoder_start_token_id": pad, "eos_token_id": 0, "bos_token_id": None}
    own = MarianMTModel(MarianConfig(**{**model.config.to_dict(), **special})).eval()
    weights = model.state_dict()
    rows = weights["model.shared.weight"][tokenizer.convert_tokens_to_ids(order)]
    rows[pad] = 0
    own.load_state_dict({name: rows if value.shape == rows.shape else value for name, value in weights.items()})
    own.generation_config.update(num_beams=1, bad_words_ids=[[pad]])
    return own, own_tokenizer


def test_marian_of_opus(opus, sentence_pairs, tmp_path):
    sources, folder = sentence_pairs[0][:50], tmp_path / "out"
    convert_to_ctranslate2(*opus, folder)
    assert json.loads((folder / "shared_vocabulary.json").read_text())[-1] != "<pad>"
    assert compare_translations(*opus, folder, sources) == []
    assert len(set(translated(folder, opus[1], sources))) > 25
