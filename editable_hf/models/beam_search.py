"""Limits and batches for decoding many sentences with `generate`."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

_AFTER_PADDING = {"camembert", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"}


def check_encoder_decoder(model: PreTrainedModel) -> None:
    """Refuses a model that cannot be given a source and a target.

    Raises:
        TypeError: For one that does not translate, such as a causal model.
        ValueError: For a ProphetNet whose positions do not start at 1.
    """
    if not model.config.is_encoder_decoder:
        raise TypeError(
            f"Expected an encoder-decoder model (Marian, BART, T5, ...), got {type(model).__name__}, which has no "
            "encoder; load a translation model with `AutoModelForSeq2SeqLM`. A causal language model is trained by "
            "`EditableCausalLMTrainer`."
        )
    if model.config.model_type == "prophetnet" and model.config.pad_token_id != 0:
        raise ValueError(
            f"Expected a ProphetNet with `pad_token_id` 0, got {model.config.pad_token_id}: it counts positions from "
            "its padding token, and its decoder fails for any other. Use a vocabulary that starts with that token."
        )


def up_to_end(ids: list[int], ends: Collection[int | None]) -> list[int]:
    """A decoded row without what follows the first of the tokens that end it."""
    end = next((position for position, token in enumerate(ids) if token in ends), len(ids))
    return ids[: end + 1]


def longest_decodable(model: PreTrainedModel) -> int | None:
    """Most tokens `model` can decode, or `None` where it has no limit (T5's positions are relative)."""
    longest = _num_positions(model.config, "decoder")
    # ProphetNet's positions start at 1, and it looks one further ahead.
    return longest - 2 if model.config.model_type == "prophetnet" else longest


def longest_source(model: PreTrainedModel) -> int | None:
    """Most tokens `model` can read, or `None` where it has no limit."""
    longest, config = _num_positions(model.config, "encoder"), model.config
    if config.model_type == "prophetnet":
        return longest - 1
    if config.model_type == "led":  # pads every source to whole windows
        window = config.attention_window
        return longest - longest % (window if isinstance(window, int) else max(window))
    return longest


def check_source_lengths(model: PreTrainedModel, lengths: Sequence[int]) -> None:
    """Raises `ValueError` if a source has more tokens than the model has positions for."""
    longest = longest_source(model)
    for index, length in enumerate(lengths):
        if longest is not None and length > longest:
            raise ValueError(
                f"Source {index} has {length} tokens, but {type(model).__name__} reads at most {longest}; shorten it, "
                "or set the tokenizer's `model_max_length`, at which sources are cut."
            )


def _num_positions(config: PreTrainedConfig, side: str) -> int | None:
    """Of the encoder or the decoder: LED's have a name each, those of `EncoderDecoderModel` a configuration each."""
    own = getattr(config, side, config)
    longest = getattr(own, f"max_{side}_position_embeddings", getattr(own, "max_position_embeddings", None))
    # Their positions start after that of the padding token.
    return longest - own.pad_token_id - 1 if own.model_type in _AFTER_PADDING else longest


def translation_limit(model: PreTrainedModel, source_length: int) -> int:
    """Most tokens to generate for a batch: `1.5 * source_length + 10`, within what the model can decode.

    As fairseq's `--max-len-a` and `--max-len-b`. A weak model would otherwise go on to its own limit for a whole batch
    because of one sentence.

    Args:
        model: The model that decodes.
        source_length: Tokens of the longest source in the batch.
    """
    limit, longest = int(1.5 * source_length) + 10, longest_decodable(model)
    return limit if longest is None else min(limit, longest - 1)


def batches_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, shortest first; deterministic."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
