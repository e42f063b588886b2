import os

os.environ["HF_HUB_OFFLINE"] = "1"

import copy

import pytest
import torch
from hypothesis import settings
from transformers import MarianConfig, MarianMTModel

torch.set_num_threads(1)

settings.register_profile("tests", max_examples=20, deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


@pytest.fixture(scope="session")
def marian_template():
    # Weights wide enough that gradients are far from 0 and predictions far from uniform.
    config = MarianConfig(
        vocab_size=40,
        decoder_vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=32,
        init_std=0.3,
        dropout=0.1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        forced_eos_token_id=2,
        decoder_start_token_id=1,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MarianMTModel(config)


@pytest.fixture
def tiny_marian(marian_template):
    """A two-layer Marian in float32 and train mode, one's own copy: vocabulary 40, pad 1, eos 2, start 1."""
    return copy.deepcopy(marian_template)
