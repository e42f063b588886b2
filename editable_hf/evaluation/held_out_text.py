"""What an edit does to a language model's predictions on ordinary text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editable_hf.core.constraint_batch import IGNORE_INDEX, token_losses
from editable_hf.core.continuations import Fact, target_batch
from editable_hf.core.functional import FunctionalModel, as_written, eval_mode
from editable_hf.core.losses import distillation_loss
from editable_hf.core.selection import select_parameters


class TextChange(NamedTuple):
    """How an edited model predicts the text.

    Attributes:
        kl: `KL(before || after)` of the next token, the mean over tokens, nats.
        perplexity: After the edit.
    """

    kl: float
    perplexity: float


class HeldOutText:
    """A text on which edits of some layers are compared with the unedited model.

    Only what the layers change runs again for each edit; what enters them is kept, as large as the text's activations.

    Args:
        model: A decoder-only model; it is left as it was.
        rows: Token ids of the texts, each of two tokens or more.
        layers: What edits may move, see [`select_parameters`].
        batch_size: Texts that run together.

    Attributes:
        perplexity: Of the unedited model.
        unedited: The layers' parameters as they were.

    Raises:
        ValueError: Without a text of two tokens.
    """

    def __init__(
        self, model: PreTrainedModel, rows: Sequence[list[int]], layers: str | Iterable[str], batch_size: int = 16
    ):
        rows = [row for row in rows if len(row) > 1]
        if not rows:
            raise ValueError("Expected held-out texts of two tokens or more, to compare predictions on; got none.")
        self._model = model
        # Of its own: while an edit is in place, the model's parameters are that edit's.
        self.unedited = {name: param.detach().clone() for name, param in select_parameters(model, layers).items()}
        self._functional = FunctionalModel(model, list(self.unedited))
        ids = [torch.tensor(row, device=model.device) for row in rows]
        texts = [Fact(row[:1], row[1:]) for row in ids]  # all but the first token are predicted
        self._batches = [target_batch(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        self.perplexity = self.change(self.unedited).perplexity

    @torch.no_grad()
    def change(self, params: Mapping[str, Tensor]) -> TextChange:
        """What the model predicts with `params` in place of its own, which may be some of the layers' alone."""
        divergence, loss, count = 0.0, 0.0, 0
        with eval_mode(self._model), as_written(self._model):
            for inputs, labels in self._batches:
                before, after = (
                    self._functional(values, **inputs, use_cache=False).logits[:, :-1]
                    for values in (self.unedited, {**self.unedited, **params})
                )
                labels = labels[:, 1:]
                tokens = int((labels != IGNORE_INDEX).sum())
                divergence += tokens * distillation_loss(before, after, labels).item()
                loss += token_losses(after, labels).sum().item()
                count += tokens
        mean = loss / count
        return TextChange(divergence / count, math.exp(mean) if mean < 700 else math.inf)
