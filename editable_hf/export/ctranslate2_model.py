"""A model as CTranslate2 runs it, converted by CTranslate2 itself, and how far its translations are the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.evaluation.translator import Translator
from editable_hf.models.beam_search import check_encoder_decoder, translation_limit
from editable_hf.seams.ctranslate2_seam import own_start_converter
from editable_hf.versions import require_extra

_BATCH_SIZE = 32


class Difference(NamedTuple):
    """A sentence that the converted model translates otherwise."""

    source: str
    model: str
    ctranslate2: str


def convert_to_ctranslate2(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    quantization: str | None = None,
) -> None:
    """Writes the model as it stands for CTranslate2, with the tokenizer's files beside it.

    Args:
        model: An encoder-decoder model that CTranslate2 knows: Marian, M2M100 and NLLB, BART, mBART, Pegasus, T5.
        tokenizer: Its tokenizer.
        folder: New folder.
        quantization: Of the weights, as CTranslate2 calls it, e.g. "int8"; by default none.

    Raises:
        ImportError: Without ctranslate2, naming the extra.
        TypeError: If the model is no encoder-decoder model.
        ValueError: If CTranslate2 does not know such models, or no such quantization.
    """
    require_extra("ctranslate2", "export")
    from ctranslate2.converters import TransformersConverter

    check_encoder_decoder(model)
    config = model.config
    from_padding = config.pad_token_id == config.decoder_start_token_id == config.vocab_size - 1
    convert = TransformersConverter if config.model_type != "marian" or from_padding else own_start_converter
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        convert(saved).convert(str(folder), quantization=quantization)
    tokenizer.save_pretrained(folder)


def compare_translations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    sources: Sequence[str],
    num_beams: int | None = None,
) -> list[Difference]:
    """Translates sentences with the model and with what it was converted to, and returns those that differ.

    Both decode as the model's generation config says: its beams, its length penalty, its limits of repetition. Even so
    beam searches end by rules of their own, and where a model is unsure they find different translations. With one
    beam all that differs comes from the weights.

    Args:
        model: The model that was converted.
        tokenizer: Its tokenizer.
        folder: From [`convert_to_ctranslate2`].
        sources: Sentences, as the model expects them.
        num_beams: In place of the model's own.
    """
    import ctranslate2

    options = model.generation_config
    beams = num_beams or options.num_beams or 1
    converted = ctranslate2.Translator(str(folder))
    first = [tokenizer.convert_ids_to_tokens([options.forced_bos_token_id])] if options.forced_bos_token_id else None
    differences = []
    for start in range(0, len(sources), _BATCH_SIZE):
        batch = list(sources[start : start + _BATCH_SIZE])
        ours = Translator(model, tokenizer, batch, num_beams=beams, batch_size=_BATCH_SIZE, keep_encoded=False)()
        ids = tokenizer(batch, truncation=True)["input_ids"]
        results = converted.translate_batch(
            list(map(tokenizer.convert_ids_to_tokens, ids)),
            target_prefix=first and first * len(batch),
            beam_size=beams,
            length_penalty=options.length_penalty if options.length_penalty is not None else 1.0,
            repetition_penalty=options.repetition_penalty or 1.0,
            no_repeat_ngram_size=options.no_repeat_ngram_size or 0,
            max_decoding_length=translation_limit(model, max(map(len, ids))),
        )
        theirs = [
            tokenizer.decode(tokenizer.convert_tokens_to_ids(result.hypotheses[0]), skip_special_tokens=True)
            for result in results
        ]
        differences += [Difference(*texts) for texts in zip(batch, ours, theirs, strict=True) if texts[1] != texts[2]]
    return differences
