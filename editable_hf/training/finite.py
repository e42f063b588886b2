"""NaN and infinity in training: the end of it with a reason, or left out and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from editable_hf.core.editing import EditResult
from editable_hf.training.term_log import TermLog


class FiniteNumbers(TrainerCallback):
    """Watches the edits of a training run, and the gradient of each update after all processes contributed to it.

    An edit is the matter of one process: where that raises, the launcher (`torchrun`, `accelerate launch`) ends the
    others, which wait for it. Where it leaves an edit out, it takes part in the update with its base loss.

    Args:
        skip: Leave out what is not finite, instead of raising `FloatingPointError`.
        terms: What the terms of the objective were, for the message.

    Attributes:
        num_skipped: Updates that were left out so far.
    """

    def __init__(self, skip: bool, terms: TermLog):
        self.skip, self.num_skipped, self._terms = skip, 0, terms
        self._requests: list[Any] = []
        self._buffers: dict[str, Tensor] = {}

    def edits(
        self, results: Sequence[EditResult], requests: Sequence[Mapping[str, Any]], step: int
    ) -> list[EditResult]:
        """The edits of update `step` that met finite numbers alone.

        Raises:
            FloatingPointError: Without `skip`, naming the update and the request of one that did not.
        """
        self._requests += [request.get("id") for request in requests]
        for result, request in zip(results, requests, strict=True):
            if result.failure is not None and not self.skip:
                raise FloatingPointError(
                    f"The edit for request {request.get('id')} failed in update {step + 1}: {result.failure}. Look "
                    "at that request and at the batch of this update, lower `edit_learning_rate`, or leave such edits "
                    "out by `skip_non_finite=True`."
                )
        return [result for result in results if result.failure is None]

    def counts(self) -> dict[str, int]:
        """`updates_skipped`, if any was."""
        return {"updates_skipped": self.num_skipped} if self.num_skipped else {}

    def on_step_begin(self, args, state, control, model=None, **kwargs) -> None:
        if self.skip:  # a forward changes the statistics of BatchNorm before anything can be seen of it
            self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

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
        if not self.skip:
            # Not the parameter: clipping has spread NaN over all gradients by now.
            raise FloatingPointError(
                f"The gradient is not finite in update {state.global_step + 1}, whose edits on this process were for "
                f"the requests {requests}{''.join(f'; {term}' for term in broken)}. No weight was changed by it. Look "
                "for values in the data that are not finite, lower the learning rates, or leave such updates out by "
                "`skip_non_finite=True`."
            )
        self.num_skipped += 1
        model.zero_grad(set_to_none=True)  # the optimizer passes over parameters without a gradient
        for name, buffer in model.named_buffers():
            buffer.copy_(self._buffers[name])
