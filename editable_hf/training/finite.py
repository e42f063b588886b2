"""NaN and infinity in training: the end of it with a reason, or left out and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import TrainerCallback

from editable_hf.core.editing import EditResult


class FiniteNumbers(TrainerCallback):
    """Watches the edits of a training run, and the gradient of each update after all processes contributed to it.

    Args:
        skip: Leave out what is not finite, instead of raising `FloatingPointError`.

    Attributes:
        num_skipped: Updates that were left out so far.
    """

    def __init__(self, skip: bool):
        self.skip, self.num_skipped = skip, 0
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
                    "at that request, lower `edit_learning_rate`, or leave such edits out by `skip_non_finite=True`."
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
        if args.fp16:  # its gradient scaler leaves out such updates by itself, and they belong to its work
            return
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        # The processes have the same gradient by now, so all come to the same conclusion.
        if not grads or get_total_norm(grads.values(), torch.inf).isfinite():
            return
        if not self.skip:
            name = next(name for name, grad in grads.items() if not grad.isfinite().all())
            raise FloatingPointError(
                f"The gradient of {name} is not finite in update {state.global_step + 1}, whose edits on this process "
                f"were for the requests {requests}. No weight was changed by it. Look for values in the data that are "
                "not finite, lower the learning rates, or leave such updates out by `skip_non_finite=True`."
            )
        self.num_skipped += 1
        model.zero_grad(set_to_none=True)  # the optimizer passes over parameters without a gradient
        for name, buffer in model.named_buffers():
            buffer.copy_(self._buffers[name])
