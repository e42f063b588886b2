"""A closed-form edit of the classifier's last linear layer: the rank-one update of Bau et al. (2020) and ROME.

Not in the paper. It needs no gradient and no training, and moves nothing but one matrix.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from editable_hf.baselines.linear_layers import inputs_kept
from editable_hf.core.constraints import ClassConstraint, Constraint
from editable_hf.core.editing import EditFunction
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel, eval_mode
from editable_hf.models.extra_block import find_head


def feature_moment(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    num_examples: int | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: str | None = "features",
) -> Tensor:
    """`C = E[h h^T]` of what enters the last linear layer, in eval mode.

    Args:
        model: An image classifier; it is left as it was.
        dataset: Training data, rows with `pixel_values` `(channels, height, width)`; not augmented.
        num_examples: Size of a random sample of the data; all of it if not given.
        batch_size: Images that run together.
        seed: Decides the sample.
        progress: Title of the progress bar, none if `None`.

    Returns:
        `(width, width)`, float64, on the model's device.

    Raises:
        ValueError: If `num_examples` is not from 1 to the size of the data, or the model has no such layer.
    """
    count = len(dataset) if num_examples is None else num_examples
    if not 1 <= count <= len(dataset):
        raise ValueError(f"`num_examples` must be from 1 to the {len(dataset)} rows of the data, got {count}.")
    rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    loader, total = DataLoader(Subset(dataset, rows), batch_size, generator=torch.Generator()), 0.0
    with eval_mode(model), torch.no_grad():
        for batch in tqdm(loader, desc=progress, disable=progress is None, unit="batch"):
            images = batch["pixel_values"].to(model.device, model.dtype)
            features = _features(model, {"pixel_values": images}).double()
            total = total + features.T @ features
    return total / count


def rank_one(moment: Tensor, *, margin: float = 1e-3, ridge: float = 1e-3) -> EditFunction:
    """An editor of the last linear layer's weight that does what is asked with the smallest change of other outputs.

    Of all updates D of the weight with which the image gets its class, it takes the one that minimizes
    `E |D h|^2`, the mean squared change of the logits over the training data: rank one, along `C^-1 h` of the image.

    Args:
        moment: C, of [`feature_moment`].
        margin: By how much the wanted class wins, in nats.
        ridge: Added to C's diagonal, as a fraction of its mean: features that are always 0 leave C singular.

    Returns:
        An editor for `edit(model, constraint, rank_one(moment), "linear.weight")` with a [`ClassConstraint`] for one
        image; the layer's name is the model's own. It takes 1 step, or 0 if the constraint holds.

    Raises:
        TypeError: When called, for a constraint of another kind.
        ValueError: When called, if another parameter is to be edited, or the constraint has several images.
    """
    inverse = torch.linalg.inv(moment + ridge * moment.diagonal().mean() * torch.eye(len(moment)).to(moment))

    def update(
        model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int
    ) -> tuple[Params, Tensor, list[float]]:
        name = f"{find_head(model.model)}.weight"
        if not isinstance(constraint, ClassConstraint):
            raise TypeError(f"`rank_one` needs a ClassConstraint, got a {type(constraint).__name__}.")
        if list(params) != [name]:
            raise ValueError(f'`rank_one` edits layers="{name}" and nothing else, got {", ".join(params)}.')
        loss = constraint(model, params)
        if loss.item() <= 0 or max_steps == 0:
            return params, loss, [loss.item()]
        with torch.set_grad_enabled(model.create_graph):
            features = _features(model.model, constraint.inputs)
            if len(features) != 1:
                raise ValueError(f"`rank_one` edits for one image, but the constraint has {len(features)}.")
            head = model.model.get_submodule(find_head(model.model))
            logits = torch.nn.functional.linear(features, params[name], head.bias)[0]
            direction = (inverse @ features[0].to(inverse)).to(features)
            change = nearest_logits(logits, constraint.target, margin) - logits
            params = {name: params[name] + torch.outer(change, direction) / (features[0] @ direction)}
        after = constraint(model, params)
        return params, after, [loss.item(), after.item()]

    return update


def nearest_logits(logits: Tensor, target: int, margin: float = 0.0) -> Tensor:
    """The logits nearest to these (least squares) among which the target's is the largest by `margin`.

    Args:
        logits: `(num_classes,)`.
        target: Class that wins.
        margin: Same.
    """
    is_target = torch.arange(len(logits), device=logits.device) == target
    own, others = logits[target] - margin, logits[~is_target].sort(descending=True).values
    if own >= others[0]:
        return logits
    # Some of the largest others and the target meet at their mean; those below it stay.
    means = (own + others.cumsum(0)) / torch.arange(2, len(logits) + 1, device=logits.device)
    level = means[int((others > means).sum()) - 1]
    return torch.where(is_target, level + margin, logits.clamp(max=level))


def _features(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """What enters the last linear layer, `(batch, width)`."""
    head = model.get_submodule(find_head(model))
    with inputs_kept([head]) as kept:
        model(**inputs)
    return kept[head]
