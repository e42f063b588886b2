"""What an edit does to a language model's predictions on ordinary text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editable_hf.core.constraint_batch import IGNORE_INDEX, token_losses
from editable_hf.core.continuations import Fact, target_batch
from editable_hf.core.functional import FunctionalModel, as_written, eval_mode
from editable_hf.core.losses import distillation_loss
from editable_hf.core.selection import select_parameters
from editable_hf.models.beam_search import batches_by_length

# The unedited model's logits are as large as the vocabulary for every token: those of the first texts are kept,
# half a gigabyte in float32, the others are computed again for each edit.
_MOST_LOGITS = 2**27


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

    Only what the layers change runs again for each edit; what enters them is kept, as large as the text's activations,
    and so is what the unedited model predicts for as much of the text as half a gigabyte holds.

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
        batches = batches_by_length([len(row) for row in ids], batch_size)
        # All but the first token are predicted.
        self._batches = [target_batch([Fact(ids[index][:1], ids[index][1:]) for index in batch]) for batch in batches]
        self._before: dict[int, Tensor] = {}
        self.perplexity = self.change(self.unedited).perplexity

    @torch.no_grad()
    def change(
        self, params: Mapping[str, Tensor], within: Callable[[], AbstractContextManager] = nullcontext
    ) -> TextChange:
        """What the model predicts with `params` in place of its own, which may be some of the layers' alone.

        Args:
            params: By qualified name.
            within: Gives a context in which the edited model runs, for edits that are no parameters.
        """
        divergence, loss, count = 0.0, 0.0, 0
        with eval_mode(self._model), as_written(self._model):
            for index, (inputs, labels) in enumerate(self._batches):
                before, labels = self._logits_before(index), labels[:, 1:]
                with within():
                    after = self._functional({**self.unedited, **params}, **inputs, use_cache=False).logits[:, :-1]
                tokens = int((labels != IGNORE_INDEX).sum())
                divergence += tokens * distillation_loss(before, after, labels).item()
                loss += token_losses(after, labels).sum().item()
                count += tokens
        mean = loss / count
        return TextChange(divergence / count, math.exp(mean) if mean < 700 else math.inf)

    def _logits_before(self, index: int) -> Tensor:
        if index in self._before:
            return self._before[index]
        logits = self._functional(self.unedited, **self._batches[index].inputs, use_cache=False).logits[:, :-1]
        if sum(each.numel() for each in self._before.values()) + logits.numel() <= _MOST_LOGITS:
            self._before[index] = logits
        return logits
