"""UltraEdit: facts written in one step from the layers' inputs and gradients, without training or stored edits.

Gu et al. (2025), "UltraEdit: Training-, Subject-, and Memory-Free Lifelong Editing in Language Models". All that is
kept from edit to edit is the mean and the spread of these vectors, by which they are normalized.
"""

from __future__ import annotations

import torch
from torch import Tensor

from editable_hf.baselines.facts import facts_of, one_step
from editable_hf.baselines.gradient_factors import RunningStatistics, gradient_factors
from editable_hf.baselines.linear_layers import linear_layers
from editable_hf.core.constraints import IGNORE_INDEX, Constraint
from editable_hf.core.continuations import target_batch
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel


class UltraEdit:
    """An editor of linear layers with lifelong normalization.

    At each token that predicts one of a target, a layer has an input `h` and a gradient `g` of its output. Both are
    normalized with the statistics of all edits so far, this one included; the value asked for is
    `v = -eta |h'|^2 g'` with the normalized ones, and the update the ridge solution `(H^T H + I)^-1 H^T V` with the
    inputs as they are. All layers are changed from the gradients before the edit.

    One object is one life: edits of a model in a row share it. The very first edit has little to compare with (of a
    single token nothing, it changes no weight); edits whose results are thrown away let it see more.

    Args:
        learning_rate: eta; the authors' 1e-6 is for models of several billion parameters.
        batch_size: Facts whose gradients are computed together.

    Attributes:
        statistics: By the names of the weights.

    Example:
        >>> editor = UltraEdit()  # doctest: +SKIP
        >>> edit(model, JointConstraint(constraints), editor, "*.mlp.up_proj.weight")  # doctest: +SKIP
    """

    def __init__(self, *, learning_rate: float = 1e-6, batch_size: int = 16):
        self.learning_rate, self.batch_size = learning_rate, batch_size
        self.statistics: dict[str, RunningStatistics] = {}

    def __call__(
        self, model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int
    ) -> tuple[Params, Tensor, list[float]]:
        """Edits as an [`EditFunction`]: one step, or none where the constraint holds.

        Raises:
            TypeError: For another constraint than a [`ContinuationConstraint`] or a [`JointConstraint`] of such.
            ValueError: For other parameters than weights of linear layers.
        """
        return one_step(self._write)(model, constraint, params, max_steps)

    def _write(self, model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int) -> Params:
        layers, facts = linear_layers(model.model, params), facts_of(constraint)
        whole = FunctionalModel(model.model, list(params), replay=False)
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in layers]
        for start in range(0, len(facts), self.batch_size):
            batch = target_batch(facts[start : start + self.batch_size])
            predicts = batch.labels[:, 1:] != IGNORE_INDEX
            for pairs, (inputs, grads) in zip(found, gradient_factors(whole, params, layers, batch), strict=True):
                pairs.append((inputs[:, :-1][predicts], grads[:, :-1][predicts]))
        for layer, pairs in zip(layers, found, strict=True):
            hidden, grads = (torch.cat(parts) for parts in zip(*pairs, strict=True))  # (num_tokens, width)
            change = ridge_solution(hidden, self._values(layer.weight, hidden, grads))
            params = layer.add(params, change)
        return params

    def _values(self, name: str, hidden: Tensor, grads: Tensor) -> Tensor:
        """What each input should add to the layer's output, `(num_tokens, out_features)`."""
        features = torch.cat([hidden, grads], 1)
        statistics = self.statistics.setdefault(name, RunningStatistics(features.shape[1]))
        statistics.update(features)
        inputs, directions = statistics.normalize(features).split([hidden.shape[1], grads.shape[1]], 1)
        return -self.learning_rate * inputs.square().sum(1, keepdim=True) * directions


def ridge_solution(inputs: Tensor, values: Tensor) -> Tensor:
    """The matrix D that minimizes `|| H D^T - V ||^2 + || D ||^2`, `(out_features, in_features)`; float64 within.

    By way of `H^T (H H^T + I)^-1 V`, a system as large as the number of tokens.
    """
    wide, kind = inputs.double(), values.dtype
    gram = wide @ wide.T + torch.eye(len(wide)).to(wide)
    return (torch.linalg.solve(gram, values.double()).T @ wide).to(kind)
