"""fairseq's `transformer_iwslt_de_en` (section 4.4) and smaller relatives, as a `MarianMTModel`."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import MarianConfig, PreTrainedTokenizerBase

from editable_hf.seams.transformers_seam import sinusoidal_tables

TRANSFORMER_SIZES: dict[str, dict[str, Any]] = {
    # transformer_iwslt_de_en: the two languages have their own embeddings, the decoder's is tied to the output.
    "iwslt_de_en": {
        "d_model": 512,
        "ffn_dim": 1024,
        "attention_heads": 4,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "share_embeddings": False,
    },
    # About 7 M parameters with 6,000 word pieces, for two CPU cores.
    "small": {
        "d_model": 256,
        "ffn_dim": 1024,
        "attention_heads": 4,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "share_embeddings": True,
    },
    # About 2 M parameters, for the demo on the embedded corpus.
    "demo": {
        "d_model": 192,
        "ffn_dim": 384,
        "attention_heads": 4,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "share_embeddings": True,
    },
    "tiny": {
        "d_model": 32,
        "ffn_dim": 64,
        "attention_heads": 2,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "share_embeddings": True,
    },
}


def iwslt_transformer_config(
    tokenizer: PreTrainedTokenizerBase, size: str = "iwslt_de_en", dropout: float = 0.3, max_length: int = 256
) -> MarianConfig:
    """Configuration of a post-norm Transformer with ReLU, sinusoid positions and scaled, tied embeddings.

    Give the configuration to `MarianMTModel`; eager attention is set here because an edit is differentiated twice, and
    fused kernels have no double backward.

    Args:
        tokenizer: Gives the vocabulary size and special tokens; one vocabulary serves both languages.
        size: A key of `TRANSFORMER_SIZES`.
        dropout: 0.3 for IWSLT14 (fairseq's recipe).
        max_length: Longest sequence in tokens, of both languages.

    Raises:
        ValueError: For an unknown size.
    """
    if size not in TRANSFORMER_SIZES:
        raise ValueError(f"Unknown model size {size!r}. Choose one of: {', '.join(TRANSFORMER_SIZES)}.")
    shape = TRANSFORMER_SIZES[size]
    return MarianConfig(
        vocab_size=len(tokenizer),
        d_model=shape["d_model"],
        encoder_layers=shape["encoder_layers"],
        decoder_layers=shape["decoder_layers"],
        encoder_ffn_dim=shape["ffn_dim"],
        decoder_ffn_dim=shape["ffn_dim"],
        encoder_attention_heads=shape["attention_heads"],
        decoder_attention_heads=shape["attention_heads"],
        share_encoder_decoder_embeddings=shape["share_embeddings"],
        activation_function="relu",
        dropout=dropout,
        scale_embedding=True,
        init_std=shape["d_model"] ** -0.5,
        max_position_embeddings=max_length,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        # fairseq starts decoding from the end-of-sequence token.
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=None,
        attn_implementation="eager",
    )


def freeze_position_tables(model: nn.Module) -> None:
    """Marks sinusoidal position tables as constants, which `from_pretrained` makes trainable (transformers 5.23).

    They never get a gradient, so several processes would wait for one and stop.
    """
    for table in sinusoidal_tables(model):
        table.weight.requires_grad_(False)
