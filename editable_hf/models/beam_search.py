"""Limits and batches for decoding many sentences with `generate`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel


def check_encoder_decoder(model: PreTrainedModel) -> None:
    """Raises `TypeError` for a model that does not translate a source into a target, such as a causal model."""
    if not model.config.is_encoder_decoder:
        raise TypeError(
            f"Expected an encoder-decoder model (Marian, BART, T5, ...), got {type(model).__name__}, which has no "
            "encoder; load a translation model with `AutoModelForSeq2SeqLM`."
        )


def longest_decodable(model: PreTrainedModel) -> int | None:
    """Most tokens `model` can decode, or `None` where it has no limit (T5's positions are relative)."""
    return getattr(model.config, "max_position_embeddings", None)


def translation_limit(model: PreTrainedModel, source_length: int, ratio: float = 1.5) -> int:
    """Most tokens to generate for a batch: `ratio * source_length + 10`, within what the model can decode.

    As fairseq's `--max-len-a` and `--max-len-b`. A weak model would otherwise go on to its own limit for a whole batch
    because of one sentence.

    Args:
        model: The model that decodes.
        source_length: Tokens of the longest source in the batch.
        ratio: Target tokens for each source token.
    """
    limit, longest = int(ratio * source_length) + 10, longest_decodable(model)
    return limit if longest is None else min(limit, longest - 1)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, shortest first; deterministic."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
