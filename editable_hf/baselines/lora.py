"""LoRA as an editor: a low-rank change of some matrices, trained on the facts and then added to the weights."""

from __future__ import annotations

import torch

from editable_hf.baselines.fine_tuning import until_it_holds
from editable_hf.baselines.linear_layers import linear_layers
from editable_hf.core.constraints import Constraint
from editable_hf.core.editing import EditFunction
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel


def lora(*, rank: int = 8, alpha: float = 32.0, learning_rate: float = 5e-3, seed: int = 0) -> EditFunction:
    """Low-rank adaptation, Hu et al. (2022), Eq. 3: `W + (alpha / rank) B A`, of which A and B are trained by Adam.

    B starts at 0 and A at random, uniform with variance 1 / (3 in_features) as in peft, so that the model is at first
    as it was. Trained on the loss of the targets, several facts as one batch, until the constraint holds; the result
    has the sum of both, ordinary weights.

    Args:
        rank: Of the change.
        alpha: Its scale.
        learning_rate: Adam's.
        seed: Of A.

    Returns:
        An editor for `edit(model, constraint, lora(), "*.mlp.down_proj.weight", max_steps)` with a
        [`ContinuationConstraint`] or a [`SequenceConstraint`], or a [`JointConstraint`] of such. A step is one of
        Adam's.

    Raises:
        TypeError: When called, for another constraint.
        ValueError: When called, for other parameters than weights of linear layers.
    """

    def tune(model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int):
        generator, factors = torch.Generator().manual_seed(seed), []
        for layer in linear_layers(model.model, params):
            rows, columns = layer.shape(params)
            bound = columns**-0.5
            start = torch.empty(rank, columns).uniform_(-bound, bound, generator=generator)
            kind = torch.promote_types(params[layer.weight].dtype, torch.float32)
            down = start.to(params[layer.weight].device, kind).requires_grad_()  # A
            factors.append((layer, down.new_zeros(rows, rank).requires_grad_(), down))

        def weights() -> Params:
            changed = params
            for layer, up, down in factors:
                changed = layer.add(changed, alpha / rank * up @ down)
            return changed

        optimizer = torch.optim.Adam([factor for _, *pair in factors for factor in pair], learning_rate)
        return until_it_holds(model, constraint, weights, optimizer, max_steps)

    return tune
