"""NaN and infinity end a training run before any weight is changed by them, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from editable_hf.core.editing import EditResult
from editable_hf.training.term_log import TermLog


class FiniteNumbers(TrainerCallback):
    """Watches the edits of a training run, and the gradient of each update after all processes contributed to it.

    An edit is the matter of one process: where that raises, the launcher (`torchrun`, `accelerate launch`) ends the
    others, which wait for it.

    Args:
        terms: What the terms of the objective were, for the message.
    """

    def __init__(self, terms: TermLog):
        self._terms = terms
        self._requests: list[Any] = []

    def check_edits(
        self, results: Sequence[EditResult], groups: Sequence[Sequence[Mapping[str, Any]]], step: int
    ) -> None:
        """Raises `FloatingPointError`, naming update `step` and the requests, where an edit met NaN or infinity."""
        self._requests += [request.get("id") for group in groups for request in group]
        for result, group in zip(results, groups, strict=True):
            if result.failure is not None:
                ids = " and ".join(str(request.get("id")) for request in group)
                raise FloatingPointError(
                    f"The edit for request {ids} failed in update {step + 1}: {result.failure}. Look at that request "
                    "and at the batch of this update, or lower `edit_learning_rate`."
                )

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        # With `auto_find_batch_size` training begins again where memory ran out, with half an update behind it.
        self._requests = []
        self._terms.reset()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs) -> None:
        requests, self._requests = self._requests, []
        broken, self._terms.not_finite = self._terms.not_finite, []
        if args.fp16:  # its gradient scaler leaves out such updates by itself, and they belong to its work
            return
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        # The processes have the same gradient by now, so all come to the same conclusion. The norm is quick, but the
        # squares of large numbers overflow.
        if get_total_norm(grads).isfinite() or all(grad.isfinite().all() for grad in grads):
            return
        # Not the parameter: clipping has spread NaN over all gradients by now.
        raise FloatingPointError(
            f"The gradient is not finite in update {state.global_step + 1}, whose edits on this process were for "
            f"the requests {requests}{''.join(f'; {term}' for term in broken)}. No weight was changed by it. Look "
            "for values in the data that are not finite, or lower the learning rates."
        )
