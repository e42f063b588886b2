"""Translating the same sentences again and again, as an evaluation of edits does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from editable_hf.core.functional import eval_mode
from editable_hf.models.beam_search import BeamCache, batches_by_length, translation_limit

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
        sources: The sentences, tokenised as the model expects.
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

    @property
    def num_batches(self) -> int:
        return len(self._batches)

    @property
    def num_sentences(self) -> int:
        return sum(map(len, self._indices))

    @torch.no_grad()
    def __call__(self, progress: str | None = None) -> list[str]:
        """Translations in the order of the sources, as text without special tokens.

        Args:
            progress: Title of a progress bar, none if not given.
        """
        translations = [""] * self.num_sentences
        with eval_mode(self.model):
            for number in tqdm(range(self.num_batches), desc=progress, disable=progress is None, unit="batch"):
                hidden, mask = self.encode(number)
                sequences = self.generate(number, hidden, mask, past_key_values=BeamCache())
                for index, text in self.decode(number, sequences):
                    translations[index] = text
        return translations

    def encode(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's output and mask for a batch, `(sentences, length, width)` and `(sentences, length)`."""
        batch, hidden = self._batches[number], self._encoded[number]
        if hidden is None:
            with eval_mode(self.model):
                hidden = self.model.get_encoder()(**batch)[0]
            if self.keep_encoded:
                self._encoded[number] = hidden
        return hidden, batch["attention_mask"]

    def generate(self, number: int, hidden: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        """Beam search with the settings of a batch.

        Args:
            number: The batch.
            hidden: See [`encode`]; several copies of the batch, one after the other, give as many copies of it.
            mask: See [`encode`].
            options: Passed on to `generate`.

        Returns:
            Token ids, `(sentences, length)`.
        """
        sources = self._batches[number]["input_ids"]
        return self.model.generate(
            # Already encoded, but options such as `encoder_no_repeat_ngram_size` look at them.
            sources.repeat(len(hidden) // len(sources), 1),
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=mask,
            num_beams=self.num_beams,
            early_stopping=self.num_beams > 1,
            max_new_tokens=self._max_new_tokens[number],
            **_FIXED,
            **options,
        )

    def decode(self, number: int, sequences: torch.Tensor) -> Iterator[tuple[int, str]]:
        """Index of each sentence of a batch among the sources, and its translation as text."""
        texts = self.tokenizer.batch_decode(sequences, skip_special_tokens=True)
        return zip(self._indices[number], texts, strict=True)
