"""From which language to which a multilingual translation model translates: NLLB, M2M100, mBART."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def set_languages(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> None:
    """Makes a multilingual model read one language and write another, in all that is done with it afterwards.

    The tokenizer marks sources and targets, and `model.generation_config.forced_bos_token_id` has every translation
    start with the token of its language. Targets and alternatives of a request share that token, so it does not count
    in `l_e`. mBART-cc25 and PLBART read that token before all others instead, as `decoder_start_token_id`.

    Does nothing for a model of one pair of languages, if none are given.

    Args:
        model: An encoder-decoder model.
        tokenizer: Its tokenizer.
        source_lang: As the tokenizer names languages, e.g. "deu_Latn" (NLLB), "de" (M2M100), "de_DE" (mBART-50). By
            default what the tokenizer and the generation config are set to.
        target_lang: Of the translations.

    Raises:
        ValueError: If one language is given without the other, the tokenizer does not know them, or it needs them and
            they are set nowhere.
    """
    multilingual = hasattr(tokenizer, "set_tgt_lang_special_tokens")
    name = type(tokenizer).__name__
    if source_lang is None and target_lang is None:
        if multilingual and not _is_set(model, tokenizer):
            raise ValueError(
                f"{name} is multilingual, and nothing says into which language to translate; give `source_lang` and "
                f"`target_lang`, two of: {_some_languages(tokenizer)}."
            )
        return
    if source_lang is None or target_lang is None:
        raise ValueError(f"Give both languages or none, got {source_lang!r} to {target_lang!r}.")
    if not multilingual:
        raise ValueError(
            f"{name} has no languages to choose from, but got {source_lang!r} to {target_lang!r}; leave them out."
        )
    _, target = (_language_id(tokenizer, language) for language in (source_lang, target_lang))
    tokenizer.src_lang, tokenizer.tgt_lang = source_lang, target_lang
    first, *_, last = tokenizer(text_target="")["input_ids"]
    if last == target != first:
        model.generation_config.decoder_start_token_id = target
    else:
        model.generation_config.forced_bos_token_id = target


def languages_of(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str]:
    """`source_lang` and `target_lang` that a multilingual tokenizer is set to, to be remembered; empty for others."""
    languages = {
        "source_lang": getattr(tokenizer, "src_lang", None),
        "target_lang": getattr(tokenizer, "tgt_lang", None),
    }
    multilingual = hasattr(tokenizer, "set_tgt_lang_special_tokens")
    return languages if multilingual and None not in languages.values() else {}


def _is_set(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model comes with a language to translate to."""
    generation = model.generation_config
    if generation.forced_bos_token_id is not None:
        return True
    start = generation.decoder_start_token_id
    return start is not None and tokenizer.convert_ids_to_tokens(start) in _known_languages(tokenizer)


def _language_id(tokenizer: PreTrainedTokenizerBase, language: str) -> int:
    codes = getattr(tokenizer, "lang_code_to_token", None)  # M2M100's "de" is "__de__"
    token = language if codes is None else codes.get(language, language)
    number = tokenizer.convert_tokens_to_ids(token)
    if number is None or number == tokenizer.unk_token_id or token not in tokenizer.all_special_tokens:
        raise ValueError(
            f"{type(tokenizer).__name__} does not know the language {language!r}; some that it knows: "
            f"{_some_languages(tokenizer)}."
        )
    return number


def _some_languages(tokenizer: PreTrainedTokenizerBase) -> str:
    every = sorted(getattr(tokenizer, "lang_code_to_token", None) or _known_languages(tokenizer))
    return ", ".join(every if len(every) <= 8 else [*every[:: len(every) // 8][:8], "..."])


def _known_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [token for token in tokenizer.all_special_tokens if not token.startswith("<")]
