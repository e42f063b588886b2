"""Moses tokenization, as in fairseq's preparation of IWSLT14."""

from __future__ import annotations

import re
from collections.abc import Sequence

_DETACHED_PUNCTUATION = re.compile(r"(?<!\S)[.,?!;:](?!\S)")
_GLUED_PUNCTUATION = re.compile(r"(?<=\w)[.,?!;:](?!\S)")
_FINAL_PERIOD = re.compile(r"(?<=[^\s.])\.$")
_NUM_SAMPLED = 2000


class MosesPreprocessor:
    """Turns raw text into Moses tokens separated by spaces, and back.

    Same output as `tokenizer.perl -l LANGUAGE` followed by `lowercase.perl`: dashes inside words stay, and the
    characters that Moses reserves are escaped (`'` becomes `&apos;`).

    Args:
        language: Two-letter code; decides which abbreviations keep their period.

    Example:
        >>> MosesPreprocessor("en").tokenize("We're all born.")
        'we &apos;re all born .'
    """

    def __init__(self, language: str):
        from sacremoses import MosesDetokenizer, MosesTokenizer  # late: a second of every command otherwise

        self._tokenizer = MosesTokenizer(lang=language)
        self._detokenizer = MosesDetokenizer(lang=language)

    def tokenize(self, text: str) -> str:
        """Moses tokens of `text` separated by single spaces; empty for blank text."""
        tokens = self._tokenizer.tokenize(text, aggressive_dash_splits=False, return_str=True, escape=True).strip()
        # tokenizer.perl detaches the period of the very last word even after an abbreviation ("in the u.s ."), which
        # sacremoses 0.2.0 does not. Without this line 31 of IWSLT14's 13,500 test lines differ from fairseq's.
        tokens = _FINAL_PERIOD.sub(" .", tokens)
        return tokens.lower()

    def detokenize(self, text: str) -> str:
        """Plain text from tokens separated by spaces: spacing joined, `&apos;` and the other escapes undone.

        Case is not restored. Straight quotes are attached by counting them, so a lone one may land on the wrong word.
        """
        return self._detokenizer.detokenize(text.split())


def looks_tokenized(texts: Sequence[str]) -> bool:
    """Whether sentences are Moses-tokenized already, judged by the spaces around their punctuation.

    A mark that stands alone (`born .`) speaks for tokens, one glued to its word (`born.`) against; the majority
    decides, since tokenized text keeps `mr.` glued and raw text has an occasional stray space. Case does not count.
    At most 2,000 sentences, evenly spaced, are looked at. Text without punctuation is taken as raw.
    """
    sample = texts[:: max(1, len(texts) // _NUM_SAMPLED)]
    num_detached = sum(len(_DETACHED_PUNCTUATION.findall(text)) for text in sample)
    num_glued = sum(len(_GLUED_PUNCTUATION.findall(text)) for text in sample)
    return num_detached > num_glued
