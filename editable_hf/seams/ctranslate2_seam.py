"""How the converters of CTranslate2 are built inside. Imports it only where it is used: it comes with an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, MarianMTModel

if TYPE_CHECKING:
    from ctranslate2.converters.converter import Converter


def own_start_converter(folder: str) -> Converter:
    """A converter for a saved Marian that starts decoding from a token of its own, such as the end of a sentence.

    CTranslate2's converter of Marians takes it for granted that decoding starts from a padding token of zeros, the
    last one of the vocabulary, as with OPUS-MT. Apart from that a Marian is a BART without layer norms on embeddings,
    and the converter of these starts from the token that the model names.

    Relies on `ctranslate2.converters.transformers.BartLoader` and `ctranslate2.converters.converter.Converter._load`
    (ctranslate2 4.8 to 4.8).
    """
    from ctranslate2.converters.converter import Converter
    from ctranslate2.converters.transformers import BartLoader

    class OwnStartConverter(Converter):
        def _load(self):
            model = MarianMTModel.from_pretrained(folder)
            model.config.normalize_before = model.config.normalize_embedding = False
            with torch.no_grad():
                return BartLoader()(model, AutoTokenizer.from_pretrained(folder))

    return OwnStartConverter()
