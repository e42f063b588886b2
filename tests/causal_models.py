"""Tiny decoder-only models of the tests: vocabulary 40, pad 1, eos 2, two layers, no dropout."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}

_NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}

# By the model type of transformers.
CAUSAL_MODELS = {
    "gpt2": _GPT2 | _NO_DROPOUT,
    "gpt_neox": {**_LLAMA, "num_key_value_heads": 4},
    "opt": {
        **{"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"max_position_embeddings": 32, "word_embed_proj_dim": 16, "dropout": 0.0},
    },
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 4},
    "qwen2": _LLAMA | {"tie_word_embeddings": True},
    "qwen3": _LLAMA | {"head_dim": 8},
    "gemma": _LLAMA | {"head_dim": 4},
    "phi": _LLAMA | {"embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "alibi": False},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "biogpt": {
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        "max_position_embeddings": 32,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "codegen": {**_GPT2, **_NO_DROPOUT, "rotary_dim": 4},
    "cohere": _LLAMA,
    "gemma2": _LLAMA | {"head_dim": 4},
    "gemma3_text": _LLAMA | {"head_dim": 4},
    "gpt_neo": {
        **{"hidden_size": 16, "intermediate_size": 32, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32},
        **{"attention_types": [[["global", "local"], 1]], "resid_dropout": 0.0, "embed_dropout": 0.0},
    },
    "gptj": {**_GPT2, **_NO_DROPOUT, "rotary_dim": 4},
    "granite": _LLAMA,
    "mixtral": _LLAMA | {"num_local_experts": 2},
    "olmo2": _LLAMA,
    "phi3": _LLAMA | {"embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "qwen2_moe": {
        **{**_LLAMA, "num_experts": 4, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
        **{"decoder_sparse_step": 1},
    },
    "smollm3": _LLAMA,
    "stablelm": _LLAMA | {"hidden_dropout": 0.0},
    "starcoder2": _LLAMA | {"embedding_dropout": 0.0, "residual_dropout": 0.0},
    "xglm": {
        **{"d_model": 16, "num_layers": 2, "attention_heads": 2, "ffn_dim": 32, "dropout": 0.0},
        **{"attention_dropout": 0.0, "max_position_embeddings": 32},
    },
}


def causal_model(name: str, **options):
    """The model of that kind, always with the same weights, in eval mode; `options` are of its configuration."""
    tokens = {"vocab_size": 40, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(name, **{**CAUSAL_MODELS[name], **tokens, "initializer_range": 0.3, **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()
