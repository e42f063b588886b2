"""The gradient of a linear layer as what it is made of: for each token the input and the gradient of the output.

With inputs `u` and gradients of outputs `d`, the weight's gradient is `sum_t d_t u_t^T`. UltraEdit and MEND change the
factors and put the update together again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from editable_hf.baselines.facts import TargetBatch, target_losses
from editable_hf.baselines.linear_layers import LinearLayer
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel
from editable_hf.seams.torch_seam import intercepted


def gradient_factors(
    model: FunctionalModel, params: Params, layers: Sequence[LinearLayer], batch: TargetBatch
) -> list[tuple[Tensor, Tensor]]:
    """Inputs and gradients of outputs, `(num_rows, length, in_features)` and `(num_rows, length, out_features)`.

    The loss is [`target_losses`], summed over the rows: what is asked for in one row does not change the factors of
    another. In float32 at least.
    """
    inputs: dict[nn.Module, Tensor] = {}
    probes: dict[nn.Module, Tensor] = {}

    def probe(module: nn.Module, forward: Callable, features: Tensor) -> Tensor:
        output = forward(features)
        inputs[module], probes[module] = features.detach(), torch.zeros_like(output, requires_grad=True)
        return output + probes[module]

    modules = [layer.module for layer in layers]
    with torch.enable_grad(), intercepted(modules, probe):
        loss = target_losses(model(params, **batch.inputs, use_cache=False).logits, batch.labels).sum()
    grads = torch.autograd.grad(loss, [probes[module] for module in modules])
    kind = torch.promote_types(grads[0].dtype, torch.float32)
    shape = (*batch.labels.shape, -1)  # OPT's layers are given the tokens of all rows in one
    pairs = zip(modules, grads, strict=True)
    return [(inputs[module].to(kind).view(shape), grad.to(kind).view(shape)) for module, grad in pairs]


class RunningStatistics(nn.Module):
    """Mean and standard deviation of all rows seen so far, column by column; saved with its `state_dict`.

    Attributes:
        count: Rows seen, scalar.
        mean: `(width,)`.
        squares: `(width,)`, the sum of squared distances to the mean.
    """

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("squares", torch.zeros(width))

    def update(self, rows: Tensor) -> None:
        """Takes `rows`, `(num_rows, width)`, into account."""
        self.to(rows.device, rows.dtype)
        total, difference = self.count + len(rows), rows.mean(0) - self.mean
        self.squares += (rows - rows.mean(0)).square().sum(0)
        self.squares += self.count * len(rows) / total * difference.square()
        self.mean += len(rows) / total * difference
        self.count = total

    def normalize(self, rows: Tensor) -> Tensor:
        """`(rows - mean) / std`; 0 where all rows were the same."""
        std = (self.squares / (self.count - 1).clamp(min=1)).sqrt()
        return (rows - self.mean) / (std + torch.finfo(rows.dtype).eps)
