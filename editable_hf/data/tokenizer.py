"""Byte-pair encodings learned from text: for both languages of a translation model, or for a language model."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MarianTokenizer, PreTrainedTokenizerFast


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    source_lang: str = "de",
    target_lang: str = "en",
    max_length: int = 256,
) -> MarianTokenizer:
    """Trains a joint BPE on the texts of both languages (section 4.4 uses 10,000 pieces).

    The text is taken as it is: no normalization, every character of the training text is kept, and decoding an
    encoded sentence gives it back exactly. Deterministic for the same texts.

    Args:
        texts: Sentences of both languages, tokenized as the model will see them.
        vocab_size: Number of pieces, special tokens included.
        source_lang: Language code of the source.
        target_lang: Language code of the target.
        max_length: `model_max_length` of the tokenizer.

    Raises:
        ValueError: If the texts are too few or too uniform for that many pieces, or have more characters than pieces.
    """
    with tempfile.TemporaryDirectory() as folder:
        spm_file, vocab_file = Path(folder, "joint.spm"), Path(folder, "vocab.json")
        spm_file.write_bytes(_train_bpe(texts, vocab_size))
        model = sentencepiece.SentencePieceProcessor(model_file=str(spm_file))
        vocab = {model.id_to_piece(index): index for index in range(model.get_piece_size())}
        vocab_file.write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        return MarianTokenizer(
            source_spm=str(spm_file),
            target_spm=str(spm_file),
            vocab=str(vocab_file),
            source_lang=source_lang,
            target_lang=target_lang,
            unk_token="<unk>",
            eos_token="</s>",
            pad_token="<pad>",
            bos_token="<s>",
            model_max_length=max_length,
        )


def train_causal_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int = 256) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE, as GPT-2 has it: a word carries the space before it, and no text is unknown.

    Args:
        texts: Same.
        vocab_size: Number of pieces at most, the three special tokens (`<pad>`, `<s>`, `</s>`) included.
        max_length: `model_max_length` of the tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<s>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    options = {"vocab_size": vocab_size, "special_tokens": special, "initial_alphabet": alphabet}
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(**options, show_progress=False))
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_max_length=max_length)


def _train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    # Into memory: a file name would be written into the model, and equal texts would not give equal files.
    model_file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model_file,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=1.0,
            normalization_rule_name="identity",
            bos_id=0,
            pad_id=1,
            eos_id=2,
            unk_id=3,
            minloglevel=2,
            num_threads=os.cpu_count() or 1,
        )
    except RuntimeError as error:
        raise ValueError(
            f"A vocabulary of {vocab_size} pieces cannot be learned from these texts; choose another `vocab_size` "
            f"({str(error).splitlines()[-1]})."
        ) from error
    return model_file.getvalue()
