"""A tiny model with random weights for each encoder-decoder architecture of transformers that translates text."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BatchEncoding,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedConfig,
    PreTrainedModel,
)

SPECIAL = {"vocab_size": 40, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "decoder_start_token_id": 2}
BART = {
    **SPECIAL,
    **{"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 32},
    **{"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0},
}
T5 = {
    **{"vocab_size": 40, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "dropout_rate": 0.0},
    **{"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2},
}
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BERT |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
GEMMA = {
    **{"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0},
    **{"sliding_window": 16, "layer_types": ["full_attention"] * 2, "attention_dropout": 0.0, "dropout_rate": 0.0},
}
PROPHET = {
    **{"vocab_size": 40, "hidden_size": 16, "ngram": 2, "max_position_embeddings": 64, "attention_dropout": 0.0},
    **{"encoder_ffn_dim": 16, "num_encoder_layers": 2, "num_encoder_attention_heads": 2, "dropout": 0.0},
    **{"decoder_ffn_dim": 16, "num_decoder_layers": 2, "num_decoder_attention_heads": 2, "activation_dropout": 0.0},
    **{"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1, "decoder_start_token_id": 1},
}


def without(options: dict, *names: str) -> dict:
    return {name: value for name, value in options.items() if name not in names}


# Name of the classes (`...Config`, `...ForConditionalGeneration`) and the options of the configuration.
CONFIGS = {
    "BigBirdPegasus": {**BART, "attention_type": "original_full"},
    "Blenderbot": BART,
    "BlenderbotSmall": BART,
    "Bart": BART,
    "LED": {
        **without(BART, "max_position_embeddings"),
        **{"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 32, "attention_window": 4},
    },
    "LongT5": {**T5, "local_radius": 4, "global_block_size": 4},
    "M2M100": BART,
    "MBart": BART,
    "MT5": T5,
    "Mvp": BART,
    "NllbMoe": {**BART, "num_experts": 2, "expert_capacity": 64, "encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "PLBart": BART,
    "Pegasus": BART,
    "PegasusX": {**BART, "block_size": 8, "num_global_tokens": 4},
    "ProphetNet": PROPHET,
    "SwitchTransformers": {
        **T5,
        **{"num_experts": 2, "expert_capacity": 64, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
        "router_jitter_noise": 0.0,
    },
    "T5": T5,
    "UMT5": T5,
}
# Their own masks, or their routers, are made for float32 and end in NaN or an error with float64.
FLOAT32 = {"FSMT", "LED", "NllbMoe", "ProphetNet", "SwitchTransformers"}


def _conditional_generation(name: str) -> PreTrainedModel:
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name])
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def _fsmt() -> PreTrainedModel:
    options = {**without(BART, "vocab_size"), "langs": ["de", "en"], "src_vocab_size": 40, "tgt_vocab_size": 40}
    return transformers.FSMTForConditionalGeneration(transformers.FSMTConfig(**options))


def _marian() -> PreTrainedModel:
    return transformers.MarianMTModel(transformers.MarianConfig(**BART))


def _t5gemma() -> PreTrainedModel:
    decoder = {**GEMMA, "cross_attention_hidden_size": 16}
    config = transformers.T5GemmaConfig(encoder=GEMMA, decoder=decoder, **{**SPECIAL, "decoder_start_token_id": 0})
    return transformers.T5GemmaForConditionalGeneration(config)


def _bert_to_bert() -> PreTrainedModel:
    decoder = BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(**BERT), decoder, decoder_start_token_id=0, pad_token_id=1, eos_token_id=2
    )
    return EncoderDecoderModel(config=config)


def build_seq2seq_models() -> dict[str, Callable[[], PreTrainedModel]]:
    """What builds the model, by name of the architecture."""
    ours = {"BERT2BERT": _bert_to_bert, "FSMT": _fsmt, "Marian": _marian, "T5Gemma": _t5gemma}
    return {**{name: lambda name=name: _conditional_generation(name) for name in CONFIGS}, **ours}


class NumberTokenizer:
    """Reads and writes sentences of numbers, the token ids; as the tiny models have none of their own."""

    def __init__(self, config: PreTrainedConfig):
        self.pad_token_id, self.eos_token_id = config.pad_token_id, config.eos_token_id

    def __call__(self, texts: list[str] | None = None, text_target: list[str] | None = None, truncation: bool = False):
        rows = texts if text_target is None else text_target
        return {"input_ids": [[*map(int, text.split()), self.eos_token_id] for text in rows]}

    def pad(self, rows: dict, return_tensors: str) -> BatchEncoding:
        rows = [torch.tensor(ids) for ids in rows["input_ids"]]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return " ".join(str(int(number)) for number in ids if number > 2)

    def batch_decode(self, rows, skip_special_tokens: bool) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in rows]
