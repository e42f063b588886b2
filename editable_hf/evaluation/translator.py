"""Translating the same sentences again and again, as an evaluation of edits does."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from editable_hf.core.edited_batch import CannotBatchEdits, edited_batch
from editable_hf.core.editing import edited
from editable_hf.core.functional import eval_mode
from editable_hf.models.beam_search import batches_by_length, check_source_lengths, translation_limit

# Where several edits are decoded in one call of `generate`. A step of decoding launches hundreds of small kernels, as
# many for 16 edits as for one, and a GPU waits for each launch. A CPU works all the time: on one core 4 edits together
# took 0.93 of the time of one after another with 64 sentences for a small model, 0.99 with 32 for fairseq's size.
TOGETHER_DEVICES = {"cuda"}

_MOST_TOGETHER, _STACKED_BYTES = 32, 4e9

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

_LOGGER = logging.getLogger(__name__)


def edits_together(model: PreTrainedModel, names: Iterable[str]) -> int:
    """How many edits of these parameters are worth measuring together, within the memory for their copies."""
    if model.device.type not in TOGETHER_DEVICES:
        return 1
    own = dict(model.named_parameters())
    num_bytes = 2 * sum(own[name].nbytes for name in names)  # by themselves, and stacked
    return max(1, min(_MOST_TOGETHER, int(_STACKED_BYTES / num_bytes)))


def reaches_encoder(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Whether one of these parameters is the encoder's: what it makes of a sentence then depends on the edit."""
    in_encoder = {id(parameter) for parameter in model.get_encoder().parameters()}
    return any(id(model.get_parameter(name)) in in_encoder for name in names)


class Translator:
    """Beam search over a fixed list of sentences with whatever parameters the model has at the moment.

    Sentences are decoded in batches of similar length. What the encoder makes of them is kept between calls, because
    an edit of decoder layers cannot change it. On a GPU a batch is decoded for several edits together.

    Args:
        model: An encoder-decoder model.
        tokenizer: Its tokenizer.
        sources: The sentences, tokenized as the model expects.
        num_beams: Beam size; if `None`, beams, early stopping and length limit are the model's generation config's.
            Otherwise, and where that has no limit, a batch gets its [`translation_limit`].
        batch_size: Sentences decoded together.
        keep_encoded: Keep the encoder's outputs. Not if the encoder is edited, see [`reaches_encoder`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sequence[str],
        *,
        num_beams: int | None = 5,
        batch_size: int = 64,
        keep_encoded: bool = True,
    ):
        self.model, self.tokenizer, self.num_beams = model, tokenizer, num_beams
        self.keep_encoded = keep_encoded
        ids = tokenizer(list(sources), truncation=True)["input_ids"] if sources else []
        check_source_lengths(model, [len(row) for row in ids])
        self._indices = batches_by_length([len(row) for row in ids], batch_size)
        self._batches = [
            tokenizer.pad({"input_ids": [ids[index] for index in indices]}, return_tensors="pt").to(model.device)
            for indices in self._indices
        ]
        self._max_new_tokens = [translation_limit(model, batch["input_ids"].shape[1]) for batch in self._batches]
        limits = (model.generation_config.max_length, model.generation_config.max_new_tokens)
        self._own_limit = num_beams is None and any(limit is not None for limit in limits)
        self._encoded: list[ModelOutput | None] = [None] * len(self._batches)
        self._together = math.inf if model.device.type in TOGETHER_DEVICES else 1  # edits decoded together, at most

    @torch.no_grad()
    def __call__(self, progress: str | None = None) -> list[str]:
        """Translations in the order of the sources, as text without special tokens.

        Args:
            progress: Title of a progress bar, none if not given.
        """
        return self.after_edits([{}], progress)[0]

    @torch.no_grad()
    def after_edits(self, edits: Sequence[Mapping[str, Tensor]], progress: str | None = None) -> list[list[str]]:
        """What the model says after each of some edits, as plain `generate` on each edited model would.

        Args:
            edits: Parameters by qualified name, the same ones of all edits.
            progress: Title of a progress bar, none if not given.
        """
        if not edits:
            return []
        translations = [[""] * sum(map(len, self._indices)) for _ in edits]
        with eval_mode(self.model):
            for number in tqdm(range(len(self._batches)), desc=progress, disable=progress is None, unit="batch"):
                texts = self._batch_after_edits(number, edits)
                for row, text in enumerate(texts):
                    edit, sentence = divmod(row, len(self._indices[number]))
                    translations[edit][self._indices[number][sentence]] = text
        return translations

    def _batch_after_edits(self, number: int, edits: Sequence[Mapping[str, Tensor]]) -> list[str]:
        """The translations of a batch after the first edit, then after the second, and so on."""
        if len(edits) <= self._together:
            try:
                with edited(self.model, edits[0]) if len(edits) == 1 else edited_batch(self.model, edits):
                    rows = self._decode(number, len(edits))
                return self.tokenizer.batch_decode(rows, skip_special_tokens=True)
            except CannotBatchEdits as reason:
                self._together = 1
                _LOGGER.warning("Edits are decoded one after another: %s", reason)
            except torch.cuda.OutOfMemoryError:
                if len(edits) == 1:
                    raise
                self._together = len(edits) // 2
        # Here the error is gone, and with it what it held in memory.
        size = min(self._together, -(-len(edits) // 2))
        parts = (edits[start : start + size] for start in range(0, len(edits), size))
        return [text for part in parts for text in self._batch_after_edits(number, part)]

    def _decode(self, number: int, num_edits: int) -> torch.Tensor:
        """Token ids of a batch's translations, `(num_edits * sentences, length)`."""
        batch = self._batches[number]
        ids, mask = (batch[key].repeat(num_edits, 1) for key in ("input_ids", "attention_mask"))
        options = {} if self._own_limit else {"max_new_tokens": self._max_new_tokens[number]}
        if self.num_beams is not None:
            options |= {"num_beams": self.num_beams, "early_stopping": self.num_beams > 1}
        return self.model.generate(
            # Already encoded, but options such as `encoder_no_repeat_ngram_size` look at them.
            ids,
            encoder_outputs=self._encode(number, ids, mask),
            attention_mask=mask,
            **options,
            **_FIXED,
        )

    def _encode(self, number: int, ids: Tensor, mask: Tensor) -> ModelOutput:
        """The encoder's output for `(num_edits * sentences, length)`, in its own class: decoders with experts ask for
        more of its fields."""
        encoded = self._encoded[number]
        if not self.keep_encoded:
            encoded = self.model.get_encoder()(input_ids=ids, attention_mask=mask, return_dict=True)
        elif encoded is None:
            encoded = self._encoded[number] = self.model.get_encoder()(**self._batches[number], return_dict=True)
        hidden = encoded[0]
        # `generate` writes into what it is given.
        return type(encoded)(last_hidden_state=hidden.repeat(len(ids) // len(hidden), 1, 1))
