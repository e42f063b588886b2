"""Translating the same sentences again and again, as an evaluation of edits does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from editable_hf.core.functional import eval_mode
from editable_hf.models.beam_search import batches_by_length, translation_limit

# What this class relies on, whatever a model's generation configuration says.
_FIXED = {
    "do_sample": False,
    "use_cache": True,
    "cache_implementation": None,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}


class Translator:
    """Beam search over a fixed list of sentences with whatever parameters the model has at the moment.

    Sentences are decoded in batches of similar length. What the encoder makes of them is kept between calls, because
    an edit of decoder layers cannot change it.

    Args:
        model: An encoder-decoder model.
        tokenizer: Its tokenizer.
        sources: The sentences, tokenized as the model expects.
        num_beams: Beam size.
        batch_size: Sentences decoded together.
        max_length_ratio: A translation gets at most `max_length_ratio * source tokens + 10` tokens, where the longest
            source of its batch counts, as with fairseq's `--max-len-a` and `--max-len-b`. A weak model would
            otherwise go on to the model's limit for a whole batch because of one sentence.
        keep_encoded: Keep the encoder's outputs. Set it to `False` if the encoder is edited.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[str],
        *,
        num_beams: int = 5,
        batch_size: int = 64,
        max_length_ratio: float = 1.5,
        keep_encoded: bool = True,
    ):
        self.model, self.tokenizer, self.num_beams = model, tokenizer, num_beams
        self.keep_encoded = keep_encoded
        ids = tokenizer(list(sources), truncation=True)["input_ids"] if sources else []
        self._indices = batches_by_length([len(row) for row in ids], batch_size)
        self._batches = [
            tokenizer.pad({"input_ids": [ids[index] for index in indices]}, return_tensors="pt").to(model.device)
            for indices in self._indices
        ]
        self._max_new_tokens = [
            translation_limit(model, batch["input_ids"].shape[1], max_length_ratio) for batch in self._batches
        ]
        self._encoded: list[torch.Tensor | None] = [None] * len(self._batches)

    @torch.no_grad()
    def __call__(self, progress: str | None = None) -> list[str]:
        """Translations in the order of the sources, as text without special tokens.

        Args:
            progress: Title of a progress bar, none if not given.
        """
        translations = [""] * sum(map(len, self._indices))
        with eval_mode(self.model):
            for number in tqdm(range(len(self._batches)), desc=progress, disable=progress is None, unit="batch"):
                texts = self.tokenizer.batch_decode(self._decode(number), skip_special_tokens=True)
                for index, text in zip(self._indices[number], texts, strict=True):
                    translations[index] = text
        return translations

    def _decode(self, number: int) -> torch.Tensor:
        """Token ids of a batch's translations, `(sentences, length)`."""
        batch = self._batches[number]
        return self.model.generate(
            # Already encoded, but options such as `encoder_no_repeat_ngram_size` look at them.
            batch["input_ids"],
            encoder_outputs=BaseModelOutput(last_hidden_state=self._encode(number)),
            attention_mask=batch["attention_mask"],
            num_beams=self.num_beams,
            early_stopping=self.num_beams > 1,
            max_new_tokens=self._max_new_tokens[number],
            **_FIXED,
        )

    def _encode(self, number: int) -> torch.Tensor:
        """The encoder's output for a batch, `(sentences, length, width)`."""
        hidden = self._encoded[number]
        if hidden is None:
            hidden = self.model.get_encoder()(**self._batches[number])[0]
            if self.keep_encoded:
                self._encoded[number] = hidden
        return hidden
