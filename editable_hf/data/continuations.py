"""What a decoder-only language model is asked for: constraints, beams and outputs after a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import MODEL_FOR_MASKED_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.continuations import ContinuationConstraint
from editable_hf.core.functional import eval_mode
from editable_hf.core.parts import is_decoder_only
from editable_hf.models.beam_search import batches_by_length, up_to_end


def check_decoder_only(model: PreTrainedModel) -> None:
    """Refuses a model that does not continue a prompt.

    Raises:
        TypeError: For an encoder-decoder, a model that cannot generate, or one that sees what comes after a token.
    """
    config = model.config
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise TypeError(
            f"Expected a causal language model, got {type(model).__name__} of a {config.model_type} whose tokens see "
            "those after them; load one that was trained to continue text, with `is_decoder=True`."
        )
    if not is_decoder_only(model):
        raise TypeError(
            f"Expected a decoder-only language model (GPT-2, Llama, Qwen, ...), got {type(model).__name__}; load one "
            "with `AutoModelForCausalLM`, or train an encoder-decoder with `EditableSeq2SeqTrainer`."
        )


def chat_prompt(tokenizer: PreTrainedTokenizerBase, messages: str | Sequence[Mapping[str, str]]) -> str:
    """What a chat model reads before it answers, as a prompt like any other: messages in its chat template.

    The answer comes right after it, so a target has no space before it ("Funafuti").

    Args:
        tokenizer: Of the model.
        messages: `{"role": ..., "content": ...}` each, or what a user says, as one string.

    Raises:
        ValueError: If the tokenizer has no chat template.

    Example:
        >>> prompts = [chat_prompt(tokenizer, "What is the capital of Tuvalu?")]  # doctest: +SKIP
        >>> make_edit_requests(model, tokenizer, prompts, targets=["Funafuti"])  # doctest: +SKIP
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, so its model is none that chats; give a plain prompt."
        )
    chat = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    # A template that writes the first token itself, and a tokenizer that adds it to any text.
    begins = tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(tokenizer.bos_token) if begins else text


def continuation_constraint(request: Mapping[str, Any], model: PreTrainedModel) -> ContinuationConstraint:
    """The constraint of a request whose source is a prompt; see [`request_constraint`]."""
    check_decoder_only(model)
    return ContinuationConstraint.from_ids(
        request["input_ids"],
        request["labels"],
        request["alternatives"],
        pad_token_id=_padding(model),
        max_length=getattr(model.config, "max_position_embeddings", None),
    ).to(model.device)


def beams_after_prompt(model: PreTrainedModel, prompt: Sequence[int], length: int, num_beams: int) -> list[list[int]]:
    """The likeliest continuations of at most `length` tokens that beam search finds, each up to its end."""
    inputs = torch.tensor([list(prompt)], device=model.device)
    return _generate(model, inputs, torch.ones_like(inputs), length, num_beams)


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 20,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[str]:
    """What the model says after each prompt, decoding greedily.

    Args:
        model: A decoder-only model.
        tokenizer: Its tokenizer.
        prompts: Beginnings of a text.
        max_new_tokens: Most tokens of an answer.
        batch_size: Prompts of similar length decoded together.
        progress: Title of the progress bar, none if `None`.
    """
    rows = continue_ids(
        model,
        tokenizer(list(prompts))["input_ids"],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def continue_ids(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    progress: str | None = None,
) -> list[list[int]]:
    """As [`continue_prompts`], of and in token ids: at most `max_new_tokens` each, up to the end."""
    answers: list[list[int]] = [[]] * len(prompts)
    batches = batches_by_length([len(row) for row in prompts], batch_size)
    for batch in tqdm(batches, desc=progress, disable=progress is None, unit="batch"):
        inputs, mask = _left_padded([prompts[index] for index in batch], _padding(model), model.device)
        with eval_mode(model):
            rows = _generate(model, inputs, mask, max_new_tokens)
        for index, row in zip(batch, rows, strict=True):
            answers[index] = row
    return answers


def _generate(
    model: PreTrainedModel, inputs: Tensor, mask: Tensor, length: int, num_beams: int = 1
) -> list[list[int]]:
    output = model.generate(
        input_ids=inputs,
        attention_mask=mask,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        max_new_tokens=length,
        pad_token_id=_padding(model),
    )
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    return [up_to_end(row, ends) for row in output[:, inputs.shape[1] :].tolist()]


def _left_padded(rows: Sequence[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids with padding before them, where generation wants it, and their mask."""
    length = max(map(len, rows))
    padding = [length - len(row) for row in rows]
    ids = [[pad] * count + row for count, row in zip(padding, rows, strict=True)]
    mask = [[0] * count + [1] * (length - count) for count in padding]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _padding(model: PreTrainedModel) -> int:
    """The padding token, or any where the model has none: it is masked, and stands behind the end of a row."""
    return 0 if model.config.pad_token_id is None else model.config.pad_token_id
