"""Edit requests: a source, the output wanted, and the outputs it must beat (section 4.4).

The source of an encoder-decoder is a sentence, and its output the translation; that of a decoder-only model is a
prompt, and its output what follows.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.constraints import SequenceConstraint
from editable_hf.core.continuations import ContinuationConstraint
from editable_hf.core.functional import eval_mode
from editable_hf.core.parts import is_decoder_only
from editable_hf.data.continuations import beams_after_prompt, check_decoder_only, continuation_constraint
from editable_hf.data.sentences import Sentences, read_sentences
from editable_hf.models.beam_search import (
    batches_by_length,
    check_encoder_decoder,
    check_source_lengths,
    longest_decodable,
    translation_limit,
    up_to_end,
)

logger = logging.getLogger(__name__)


class NoEditRequestsError(ValueError):
    """None of the sources gives an edit request."""


def request_constraint(
    request: Mapping[str, Any], model: PreTrainedModel, length_penalty: float = 0.0
) -> SequenceConstraint | ContinuationConstraint:
    """The constraint of one request for `model`.

    Args:
        request: A row with `input_ids`, `labels` and `alternatives` (token ids; of translations, each ends in the
            end-of-sequence token).
        model: Gives the special tokens and the longest sequence it can decode.
        length_penalty: Exponent of the length normalization, see [`SequenceConstraint`]; 0 for a decoder-only model.

    Raises:
        TypeError: If `model` does not write text.
        ValueError: If the source or the target is empty or too long, or no alternative differs from it.
    """
    if is_decoder_only(model):
        if length_penalty != 0:
            raise ValueError(f"Expected `length_penalty` 0 for a decoder-only model, got {length_penalty}.")
        return continuation_constraint(request, model)
    check_encoder_decoder(model)
    config = model.config
    input_ids = torch.tensor([request["input_ids"]])
    if input_ids.numel() == 0:
        raise ValueError(f"Edit request {request.get('id', '')} has an empty source; give the sentence to translate.")
    check_source_lengths(model, [input_ids.shape[1]])
    start = model.generation_config.decoder_start_token_id  # which decoding obeys
    if start is None:
        start = config.decoder_start_token_id
    return SequenceConstraint.from_ids(
        {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)},
        request["labels"],
        request["alternatives"],
        decoder_start_token_id=config.pad_token_id if start is None else start,
        pad_token_id=config.pad_token_id,
        max_length=longest_decodable(model),
        length_penalty=length_penalty,
    ).to(model.device)


def make_edit_requests(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    targets: Sequence[str] | None = None,
    num_alternatives: int = 32,
    temperature: float = 1.2,
    batch_size: int = 16,
    seed: int = 0,
    first_id: int = 0,
    progress: str | None = "edit requests",
) -> Dataset:
    """Edit requests for `sources`: alternatives by beam search, targets by sampling (section 4.4).

    A source whose target is the only translation found gets no request, because there is nothing to beat; nor does
    one whose sampled target is cut at the length limit, because a beginning of a sentence is no translation. The
    result depends on `seed`, and on `batch_size` through the order of the random numbers.

    Args:
        model: The normally trained model, with its `tokenizer`.
        sources: Sentences, tokenized as the model expects; prompts for a decoder-only model.
        targets: Wanted outputs, one for each source; translations are sampled if not given. What follows a prompt
            must be given, with the space before a new word (`" Funafuti"`).
        num_alternatives: Beam size and number of alternatives (k = 32 in the paper).
        temperature: Of the sampled targets (1.2 in the paper).
        batch_size: Sources of similar length decoded together.
        seed: Seed of the sampling.
        first_id: `id` of the first source; the others count on from it.
        progress: Title of the progress bar, none if `None`.

    Returns:
        A dataset with columns `id`, `source`, `target`, `input_ids`, `labels`, `alternatives` (ids, best first).

    Raises:
        TypeError: If `model` does not write text.
        ValueError: Without sources, if one is too long, it or a target is empty, numbers differ, or a decoder-only
            model is given no targets.
        NoEditRequestsError: If no source is left, with the reasons; a `ValueError` too.
    """
    _check_pairs(sources, targets)
    if is_decoder_only(model):
        return _prompt_requests(model, tokenizer, sources, targets, num_alternatives, first_id, progress)
    check_encoder_decoder(model)
    ids = tokenizer(list(sources), truncation=True)["input_ids"]
    check_source_lengths(model, [len(row) for row in ids])
    rows: list[dict[str, Any]] = []
    batches = batches_by_length([len(row) for row in ids], batch_size)
    with eval_mode(model), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for batch in tqdm(batches, desc=progress, disable=progress is None, unit="batch"):
            inputs = tokenizer.pad({"input_ids": [ids[index] for index in batch]}, return_tensors="pt").to(
                model.device
            )
            beams = _beam_search(model, tokenizer, inputs, num_alternatives)
            given = None if targets is None else [targets[index] for index in batch]
            wanted = _sample(model, tokenizer, inputs, temperature) if given is None else _target_ids(tokenizer, given)
            for index, target, found in zip(batch, wanted, beams, strict=True):
                rows.append(_request(first_id + index, sources[index], ids[index], target, found, tokenizer))
    return _usable(rows, tokenizer.eos_token_id if targets is None else None)


def _prompt_requests(
    model, tokenizer, prompts: Sequence[str], targets: Sequence[str] | None, num_beams: int, first_id: int, progress
) -> Dataset:
    check_decoder_only(model)
    if targets is None:
        raise ValueError("Give `targets`: what a decoder-only model should say after each prompt.")
    pairs = list(zip(prompts, targets, strict=True))
    rows = []
    with eval_mode(model):
        for number, (prompt, target) in enumerate(tqdm(pairs, desc=progress, disable=progress is None), first_id):
            ids, labels = tokenizer(prompt)["input_ids"], tokenizer(target, add_special_tokens=False)["input_ids"]
            found = beams_after_prompt(model, ids, len(labels), num_beams)
            rows.append({**_request(number, prompt, ids, labels, found, tokenizer), "target": target})
    return _usable(rows, None)


def _request(
    number: int, source: str, input_ids: list[int], labels: list[int], beams: list[list[int]], tokenizer
) -> dict[str, Any]:
    alternatives = dict.fromkeys(tuple(beam) for beam in beams if beam != labels)
    return {
        "id": number,
        "source": source,
        "target": tokenizer.decode(labels, skip_special_tokens=True),
        "input_ids": input_ids,
        "labels": labels,
        "alternatives": [list(beam) for beam in alternatives],
    }


def _warn_of_repetition(rows: list[dict[str, Any]]) -> None:
    """A model that says one token again and again has learned nothing that an edit could keep."""
    outputs = [row["alternatives"][0] for row in rows if row["alternatives"]]
    repeating = sum(len(ids) > 3 and 2 * Counter(ids).most_common(1)[0][1] > len(ids) for ids in outputs)
    if 2 * repeating > len(rows):
        logger.warning(
            "%s of %s translations of the model consist mostly of one token: it has not been trained long enough, or "
            "its training collapsed. Edits of such a model mean little.",
            repeating,
            len(rows),
        )


def _usable(rows: list[dict[str, Any]], end: int | None) -> Dataset:
    """The requests that an edit can be asked for, by `id`; with `end`, those whose target ends in that token."""
    _warn_of_repetition(rows)
    whole = [row for row in rows if end is None or row["labels"][-1:] == [end]]
    usable = [row for row in whole if row["alternatives"]]
    reasons = (
        f"{len(whole) - len(usable)} of {len(rows)} have a target that is the only translation found, and "
        f"{len(rows) - len(whole)} a sampled target that is cut at the length limit"
    )
    if not usable:
        raise NoEditRequestsError(
            f"None of the sources gives an edit request: {reasons}. For the former, raise `num_alternatives` or give "
            "targets that the model does not produce; for the latter, lower `temperature` or train the model longer."
        )
    if len(usable) < len(rows):
        logger.info("Sources left out: %s.", reasons)
    return Dataset.from_list(sorted(usable, key=lambda row: row["id"]))


def _beam_search(
    model: PreTrainedModel, tokenizer, inputs: Mapping[str, Any], num_beams: int
) -> list[list[list[int]]]:
    """The beams of each source, best first."""
    output = model.generate(
        **inputs,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        early_stopping=num_beams > 1,
        max_new_tokens=translation_limit(model, inputs["input_ids"].shape[1]),
    )
    rows = [strip_ids(row, tokenizer) for row in output]
    return [rows[start : start + num_beams] for start in range(0, len(rows), num_beams)]


def _sample(model: PreTrainedModel, tokenizer, inputs: Mapping[str, Any], temperature: float) -> list[list[int]]:
    """One translation sampled for each source."""
    output = model.generate(
        **inputs,
        num_beams=1,
        do_sample=True,
        temperature=temperature,
        top_k=0,
        early_stopping=False,
        max_new_tokens=translation_limit(model, inputs["input_ids"].shape[1]),
    )
    return [strip_ids(row, tokenizer) for row in output]


def strip_ids(ids: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Generated ids without the decoder's start token and without padding; keeps the end-of-sequence token."""
    tokens = ids.tolist()[1:]
    if tokenizer.eos_token_id in tokens:
        return up_to_end(tokens, [tokenizer.eos_token_id])
    return [token for token in tokens if token != tokenizer.pad_token_id]


def _target_ids(tokenizer: PreTrainedTokenizerBase, targets: list[str]) -> list[list[int]]:
    # mBART and PLBart put a language behind the end, which no decoding gives.
    return [up_to_end(ids, [tokenizer.eos_token_id]) for ids in tokenizer(text_target=targets)["input_ids"]]


def _check_pairs(sources: Sequence[str], targets: Sequence[str] | None) -> None:
    if len(sources) == 0:
        raise ValueError("There is no source to make an edit request of; give at least one sentence.")
    for kind, texts in (("source", sources), ("target", targets or ())):
        for index, text in enumerate(texts):
            if not text.strip():
                raise ValueError(
                    f"The {kind} of edit request {index} is empty; give a sentence or leave the request out."
                )
    if targets is not None and len(targets) != len(sources):
        raise ValueError(
            f"There are {len(sources)} sources but {len(targets)} targets; give one target for each source."
        )


def read_edit_requests(
    path: str | os.PathLike, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **kwargs: Any
) -> Dataset:
    """Reads a user's own requests, e.g. JSONL with `{"source": ..., "target": ...}` a line, and adds alternatives.

    Args:
        path: A file that [`read_sentences`] takes, with targets.
        model: The model that is going to be edited; it proposes the alternatives.
        tokenizer: Its tokenizer.
        kwargs: Of [`make_edit_requests`].

    Raises:
        ValueError: Naming the line that is not as described, or if there are no targets.
    """
    sources, targets = read_corrections(path)
    return make_edit_requests(model, tokenizer, sources, targets=targets, **kwargs)


def read_corrections(path: str | os.PathLike) -> Sentences:
    """Sources and the outputs wanted, from a file that [`read_sentences`] takes.

    Raises:
        ValueError: Naming the line that is not as described, or if there is none or no target.
    """
    pairs = read_sentences(path)
    if pairs.references is None:
        raise ValueError(f'{path}: expected a "target" for each source, but there is none; add them.')
    return pairs
