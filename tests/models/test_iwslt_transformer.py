from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import MarianMTModel

from editable_hf import edit, request_constraint, rmsprop
from editable_hf.models import TRANSFORMER_SIZES, iwslt_transformer_config

pytestmark = pytest.mark.compat


class Vocabulary(SimpleNamespace):
    """What the configuration needs of a tokenizer."""

    def __init__(self, size):
        super().__init__(size=size, bos_token_id=0, pad_token_id=1, eos_token_id=2)

    def __len__(self):
        return self.size


def num_trainable(vocabulary, size):
    with torch.device("meta"):
        model = MarianMTModel(iwslt_transformer_config(Vocabulary(vocabulary), size))
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("size", "vocabulary", "low", "high"),
    [
        ("iwslt_de_en", 10_000, 39.5e6, 42e6),
        ("small", 6_000, 6e6, 8e6),
        ("demo", 2_000, 1e6, 2.5e6),
        ("tiny", 100, 1e4, 1e5),
    ],
)
def test_number_of_parameters(size, vocabulary, low, high):
    count = num_trainable(vocabulary, size)
    print(f"{size} with {vocabulary:,} pieces: {count:,} trainable parameters")
    assert low <= count <= high


def test_parameters_are_those_of_fairseq():
    # 8,848 and 6,632 pieces of IWSLT14's own dictionaries: 39,469,056, with one table for each language.
    layers = num_trainable(10_000, "iwslt_de_en") - 2 * 10_000 * 512
    assert layers + (8_848 + 6_632) * 512 == 39_469_056


def test_every_size_is_tested():
    assert set(TRANSFORMER_SIZES) == {"iwslt_de_en", "small", "demo", "tiny"}


@pytest.mark.parametrize("size", ["iwslt_de_en", "tiny"])
def test_embeddings(size):
    shape = TRANSFORMER_SIZES[size]
    config = iwslt_transformer_config(Vocabulary(50), size)
    config.d_model, config.encoder_ffn_dim, config.decoder_ffn_dim = 16, 16, 16
    model = MarianMTModel(config)
    names = {name for name, _ in model.named_parameters()}
    assert "lm_head.weight" not in names
    assert model.lm_head.weight is model.get_decoder().embed_tokens.weight
    shared = model.get_encoder().embed_tokens.weight is model.get_decoder().embed_tokens.weight
    assert shared == shape["share_embeddings"]


def test_configuration(tokenizer):
    config = iwslt_transformer_config(tokenizer, "iwslt_de_en", dropout=0.2, max_length=77)
    assert (config.encoder_layers, config.decoder_layers, config.encoder_attention_heads) == (6, 6, 4)
    assert (config.d_model, config.encoder_ffn_dim, config.decoder_ffn_dim) == (512, 1024, 1024)
    assert (config.vocab_size, config.dropout, config.max_position_embeddings) == (100, 0.2, 77)
    assert config.activation_function == "relu" and config.scale_embedding
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (1, 2, 2)
    assert iwslt_transformer_config(tokenizer).d_model == 512


def test_eager_attention_makes_it_editable(tokenizer):
    torch.manual_seed(0)
    model = MarianMTModel(iwslt_transformer_config(tokenizer, "tiny"))
    assert model.config._attn_implementation == "eager"
    row = {"input_ids": [5, 6, 2], "labels": [7, 2], "alternatives": [[8, 9, 2]]}
    row = row if request_constraint_value(model, row) > 0 else {**row, "labels": [8, 9, 2], "alternatives": [[7, 2]]}
    constraint = request_constraint(row, model)
    result = edit(model, constraint, rmsprop(1e-4), "last_decoder_layer", 2, create_graph=True)
    assert result.num_steps == 2
    result.loss.backward()
    assert model.get_encoder().embed_tokens.weight.grad.abs().sum() > 0


def request_constraint_value(model, row):
    return edit(model, request_constraint(row, model), rmsprop(1e-4), "last_decoder_layer", 0).loss.item()


def test_never_more_than_the_longest_sequence(tokenizer):
    model = MarianMTModel(iwslt_transformer_config(tokenizer, "tiny", max_length=12))
    source = torch.full((1, 12), 5)
    assert model(input_ids=source, decoder_input_ids=source).logits.shape == (1, 12, 100)
    with pytest.raises(IndexError):
        model(input_ids=torch.full((1, 13), 5), decoder_input_ids=source)


def test_unknown_size(tokenizer):
    with pytest.raises(ValueError, match="Unknown model size 'big'. Choose one of: iwslt_de_en, small, demo, tiny"):
        iwslt_transformer_config(tokenizer, "big")
