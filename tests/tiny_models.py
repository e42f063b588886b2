"""The tiny models of the tests, built from configurations: vocabulary 40, pad 1, eos 2."""

from __future__ import annotations

from typing import Any

from transformers import BartConfig, MarianConfig, T5Config

_SHAPE = {
    "vocab_size": 40,
    "d_model": 16,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
    # Wide enough that gradients are far from 0 and predictions far from uniform.
    "init_std": 0.3,
    "attn_implementation": "eager",
}


def marian_config(**options: Any) -> MarianConfig:
    """Starts decoding from the padding token; `options` replace what is set here."""
    own = {
        "encoder_layers": 2,
        "dropout": 0.1,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "forced_eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return MarianConfig(**{**_SHAPE, **own, **options})


def bart_config(**options: Any) -> BartConfig:
    """`options` replace what is set here."""
    return BartConfig(**{**_SHAPE, "encoder_layers": 1, **options})


def t5_config() -> T5Config:
    return T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
