from __future__ import annotations

from torch import Tensor
from transformers import TrainerCallback


class GradientRecorder(TrainerCallback):
    """Copies every gradient just before each optimizer step.

    Attributes:
        steps: For each step the gradients by name of the parameter, of those that have one.
    """

    def __init__(self):
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
