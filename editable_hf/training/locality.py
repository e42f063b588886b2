"""What the locality term (Eq. 4) compares: logits of the unedited and of the edited model on the base batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from transformers.utils import logging

from editable_hf.core.constraints import launches_dominate
from editable_hf.core.editors import Params
from editable_hf.core.functional import as_written, eval_mode
from editable_hf.core.replay import Recording, ReplayError, record
from editable_hf.training.arguments import EditableArguments

logger = logging.get_logger(__name__)

# Logits of the edits that are compared at once: they and their gradient are in memory for a moment. 2 GiB in float32.
_MOST_LOGITS = 2**29


class LocalityBatch:
    """One batch of the base loss, on which edits are compared with the unedited model.

    Both sides run in eval mode: with dropout they would differ without any edit. What precedes the edited layers is
    the same for both, so it need not run again: it is taken from the base forward as that was recorded, dropout
    included. Otherwise the whole model runs once more in eval mode. What follows is computed without autocast.

    Args:
        model: The unwrapped model.
        params: The parameters that edits move, as the model holds them.
        inputs: The model's inputs for the batch, without labels.
        loss: Of Eq. 4, from the unedited logits (without graph) and the edited ones.
        reuse_base_forward: Start from the activations of the forward within [`recorded`].
        replay: Run only what an edit changes. Without it each side is a forward of the whole model.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Params,
        inputs: Mapping[str, Any],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        reuse_base_forward: bool = True,
        replay: bool = True,
    ):
        self.model, self.params, self.inputs, self.loss, self._replay = model, params, dict(inputs), loss, replay
        self._reuse = reuse_base_forward and replay
        self._recording: Recording | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        names: Iterable[str],
        inputs: Mapping[str, Any],
        loss: Callable[[Tensor, Tensor], Tensor],
        args: EditableArguments,
    ) -> LocalityBatch:
        """For edits of the parameters `names`, as the training arguments say."""
        own = dict(model.named_parameters())
        # Compiled code cannot be watched.
        reuse = args.reuse_base_forward and not args.torch_compile
        params = {name: own[name] for name in names}
        return cls(model, params, inputs, loss, reuse_base_forward=reuse, replay=args.replay)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Records the base forward that runs within the block, through whatever wraps the model."""
        if not self._reuse:
            yield
            return
        with record(self.model, self.params.values(), mixed_modes=True) as recording:
            yield
        self._recording = recording

    def compare(self, edits: list[Params]) -> Tensor:
        """Sum of the loss over the edits; `edits` holds the edited parameters of each, with graph."""
        with eval_mode(self.model), as_written(self.model):
            try:
                return self._compare(edits)
            except ReplayError as error:
                if self._recording is None:
                    raise
                logger.warning_once(f"The locality term needs a second forward for this model. {error}")
                self._recording = None
                return self._compare(edits)

    def _compare(self, edits: list[Params]) -> Tensor:
        if not self._replay:
            with torch.no_grad():
                reference = self.model(**self.inputs).logits
            logits = (functional_call(self.model, params, (), self.inputs).logits for params in edits)
            return sum(self.loss(reference, edited) for edited in logits)
        recording = self._recording
        if recording is not None:
            with torch.no_grad():
                reference = recording.replay(self.params).logits
        else:
            with record(self.model, self.params.values()) as recording:
                reference = self.model(**self.inputs).logits.detach()
        logits = self._edited_logits(recording, edits, reference)
        return sum(self.loss(reference, edited) for edited in logits)

    def _edited_logits(self, recording: Recording, edits: list[Params], reference: Tensor) -> Iterator[Tensor]:
        """The logits of each edit, several computed at once where that is quicker and memory holds them."""
        size = max(1, _MOST_LOGITS // reference.numel()) if launches_dominate(reference.device) else 1
        for start in range(0, len(edits), size):
            part = edits[start : start + size]
            yield from [recording.replay(part[0]).logits] if len(part) == 1 else _together(recording, part)


def _together(recording: Recording, edits: list[Params]) -> Sequence[Tensor]:
    stacked = {name: torch.stack([params[name] for params in edits]) for name in edits[0]}
    try:
        return vmap(lambda params: recording.replay(params).logits)(stacked).unbind()
    except (ReplayError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # what depends on values, such as the choice of experts, is nothing for `vmap`
        logger.warning_once(f"The locality term is computed for one edit after another with this model. {error}")
        return [recording.replay(params).logits for params in edits]
