"""What encoder-decoders of transformers cannot do is said before they are run; what they can is not refused."""

from __future__ import annotations

import pytest
import torch
from seq2seq_models import CONFIGS, NumberTokenizer, build_seq2seq_models
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    MBartTokenizer,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    RobertaConfig,
)

from editable_hf import (
    EditableSeq2SeqTrainer,
    EditableSeq2SeqTrainingArguments,
    edit,
    make_edit_requests,
    request_constraint,
    rmsprop,
)
from editable_hf.data.languages import set_languages
from editable_hf.evaluation.translator import Translator
from editable_hf.evaluation.verified_edit import verified_edit
from editable_hf.models.beam_search import longest_decodable, longest_source

MODELS = build_seq2seq_models()
NO_LIMIT = {"LongT5", "MT5", "SwitchTransformers", "T5", "UMT5"}
# Their positions are computed, so that they run beyond what they were made for.
COMPUTED = {"FSMT", "M2M100", "NllbMoe", "PegasusX", "T5Gemma"}


def build_short(name):
    """With few positions, and not as many on both sides where each has a configuration of its own."""
    if name in MODELS and name != "BERT2BERT":
        return MODELS[name]().eval()
    config_class = BertConfig if name == "BERT2BERT" else RobertaConfig
    shape = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = config_class(**shape, intermediate_size=8, max_position_embeddings=24)
    decoder = config_class(
        **shape, intermediate_size=8, max_position_embeddings=32, is_decoder=True, add_cross_attention=True
    )
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=0, pad_token_id=1, eos_token_id=2
    )
    return EncoderDecoderModel(config=config).eval()


def runs(model, source, target):
    ids = torch.full((1, source), 5)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), decoder_input_ids=torch.full((1, target), 5))
    except (IndexError, RuntimeError):  # a table of positions, or one of token types, that is shorter
        return False
    return True


@pytest.mark.parametrize("name", [*sorted(set(MODELS) - COMPUTED), "RoBERTa2RoBERTa"])
def test_limits_are_where_the_model_fails(name):
    model = build_short(name)
    source, target = longest_source(model), longest_decodable(model)
    assert (source is None) == (target is None) == (name in NO_LIMIT)
    if source is None:
        assert runs(model, 100, 100)
        return
    assert runs(model, source, 3) and runs(model, 3, target)
    assert not runs(model, 3, target + 1)
    # ProphetNet gives all tokens beyond its last position that position.
    assert name == "ProphetNet" or not runs(model, source + 1, 3)


@pytest.mark.parametrize("name", ["BERT2BERT", "LED", "Marian", "ProphetNet"])
def test_too_long_is_said(name):
    model = build_short(name)
    tokenizer = NumberTokenizer(model.config)
    source = " ".join(["5"] * longest_source(model))  # and its end
    message = rf"Source 0 has {longest_source(model) + 1} tokens, but .* reads at most {longest_source(model)}"
    row = {"input_ids": [5] * (longest_source(model) + 1), "labels": [6, 2], "alternatives": [[7, 2]]}
    with pytest.raises(ValueError, match=message):
        request_constraint(row, model)
    with pytest.raises(ValueError, match=message):
        make_edit_requests(model, tokenizer, [source], targets=["6"])
    with pytest.raises(ValueError, match=message):
        Translator(model, tokenizer, [source])
    target = [6] * (longest_decodable(model) + 1)
    with pytest.raises(ValueError, match=f"target has {len(target)} tokens, but the model decodes at most"):
        request_constraint({"input_ids": [5, 2], "labels": target, "alternatives": [[7, 2]]}, model)


@pytest.mark.parametrize("name", ["BERT2BERT", "LED", "ProphetNet", "RoBERTa2RoBERTa"])
def test_longest_source_and_target_that_are_allowed(name):
    model = build_short(name)
    tokenizer = NumberTokenizer(model.config)
    sources = [" ".join(["5"] * (longest_source(model) - 1))]
    assert len(Translator(model, tokenizer, sources, num_beams=2)()) == 1
    (row,) = make_edit_requests(model, tokenizer, sources, targets=["6 7"], num_alternatives=3, progress=None)
    longest = [6] * longest_decodable(model)
    constraint = request_constraint({**row, "labels": longest}, model)
    assert edit(model, constraint, rmsprop(1e-2), "last_decoder_layer", 1).num_steps == 1


def test_padding_of_prophetnet():
    config = ProphetNetConfig(**{**CONFIGS["ProphetNet"], "pad_token_id": 1, "bos_token_id": 0})
    model = ProphetNetForConditionalGeneration(config)
    row = {"input_ids": [5, 2], "labels": [6, 2], "alternatives": [[7, 2]]}
    with pytest.raises(ValueError, match="ProphetNet with `pad_token_id` 0, got 1"):
        request_constraint(row, model)
    with pytest.raises(ValueError, match="ProphetNet with `pad_token_id` 0, got 1"):
        EditableSeq2SeqTrainer(model, EditableSeq2SeqTrainingArguments("unused", report_to=[], use_cpu=True))


@pytest.mark.parametrize("name", ["NllbMoe", "SwitchTransformers"])
def test_losses_of_routers_are_not_left_out_in_silence(name):
    model = MODELS[name]()
    args = EditableSeq2SeqTrainingArguments("unused", report_to=[], use_cpu=True)
    EditableSeq2SeqTrainer(model, args)
    model.config.output_router_logits = True
    with pytest.raises(ValueError, match="the trainer computes its own and would leave them out"):
        EditableSeq2SeqTrainer(model, args)


@pytest.fixture
def mbart_tokenizer():
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((each, -3.0) for each in "▁abcdeghorstu")]
    return MBartTokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="en_XX")


def test_targets_of_mbart_end_where_decoding_ends(mbart_tokenizer):
    """They end in the language, for the training's sake, and decoding starts with it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS["MBart"]()
        model.resize_token_embeddings(len(mbart_tokenizer))
    model.eval()
    set_languages(model, mbart_tokenizer, "de_DE", "ro_RO")
    german, romanian = (mbart_tokenizer.convert_tokens_to_ids(code) for code in ("de_DE", "ro_RO"))
    options = {"targets": ["the dog"], "num_alternatives": 3, "progress": None}
    (row,) = make_edit_requests(model, mbart_tokenizer, ["das haus"], **options)
    assert row["input_ids"][-2:] == [2, german]
    assert row["labels"][-1] == 2 and romanian not in row["labels"] and row["target"] == "the dog"
    constraint = request_constraint(row, model)
    assert (constraint.decoder_input_ids[:, 0] == romanian).all()
    outcome = verified_edit(model, mbart_tokenizer, [row], rmsprop(3e-2), "*", max_steps=60)
    assert outcome.outputs == ["the dog"] and outcome.all_verified
