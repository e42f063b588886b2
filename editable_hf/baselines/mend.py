"""MEND: a small network, trained on edits, turns the gradient of a fact into the update that says it.

Mitchell et al. (2022), "Fast Model Editing at Scale". A gradient of a whole matrix is too large for a network to read.
Its factors are not, and the network maps them to those of the update: `u`, what enters the layer at a token, and `d`,
the gradient of what leaves it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from editable_hf.baselines.facts import facts_of, one_step, target_loss
from editable_hf.baselines.gradient_factors import RunningStatistics, gradient_factors
from editable_hf.baselines.linear_layers import linear_layers
from editable_hf.core.constraints import Constraint
from editable_hf.core.continuations import Fact, target_batch
from editable_hf.core.editing import EditFunction
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel, as_written, eval_mode
from editable_hf.core.losses import locality_loss
from editable_hf.core.selection import select_parameters


class MendExample(NamedTuple):
    """What MEND is trained on.

    Attributes:
        edit: The fact or facts, a [`ContinuationConstraint`] or a [`JointConstraint`] of such (x_e).
        rephrased: The same in other words (x_e').
        unrelated: Token ids of a text whose continuations should stay (x_loc).
    """

    edit: Constraint
    rephrased: Constraint
    unrelated: Sequence[int]


class LowRankBlock(nn.Module):
    """`z + relu(s * (U V z + b) + o)`, of low rank; s and o are a layer's own. At first the identity."""

    def __init__(self, width: int, rank: int, num_layers: int):
        super().__init__()
        self.up = nn.Parameter(torch.zeros(width, rank))
        self.down = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, width)))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(num_layers, width))
        self.offset = nn.Parameter(torch.zeros(num_layers, width))

    def forward(self, features: Tensor, layer: int) -> Tensor:
        inside = features @ self.down.T @ self.up.T + self.bias
        # Not relu: all is 0 at first, where it has no gradient and `clamp` has one.
        return features + (self.scale[layer] * inside + self.offset[layer]).clamp(min=0)


class Mend(nn.Module):
    """The editor network of some linear layers; those of one shape share it (Eq. 3).

    For the factors of all tokens, normalized and side by side, `u', d' = block(block([u; d]))`; the update of a layer
    is `-alpha sum_t d'_t u'_t^T` (Algorithm 1). Train it with [`train_mend`]; then `mend.build()` is an editor.

    Args:
        model: The model that will be edited.
        layers: Weights of linear layers, see [`select_parameters`].
        rank: Of the blocks, at most the width of both factors together.
        learning_rate: alpha at first; a learned number for each layer.

    Raises:
        ValueError: If one of `layers` is not the weight of a linear layer.
    """

    def __init__(
        self, model: PreTrainedModel, layers: str | Iterable[str], *, rank: int = 1920, learning_rate: float = 1e-4
    ):
        super().__init__()
        params = select_parameters(model, layers)
        shapes = [tuple(layer.shape(params)) for layer in linear_layers(model, params)]
        self.names, self.keys = list(params), [f"{rows}x{columns}" for rows, columns in shapes]
        self.places = [self.keys[:index].count(key) for index, key in enumerate(self.keys)]
        self.alphas = nn.Parameter(torch.full((len(shapes),), learning_rate))
        self.networks, self.statistics = nn.ModuleDict(), nn.ModuleDict()
        for key, width in {key: sum(shape) for key, shape in zip(self.keys, shapes, strict=True)}.items():
            sizes = (width, min(rank, width), self.keys.count(key))
            self.networks[key] = nn.ModuleList([LowRankBlock(*sizes), LowRankBlock(*sizes)])
            self.statistics[key] = RunningStatistics(width)
        self.to(model.device)

    def updated(self, model: FunctionalModel, params: Params, facts: Sequence[Fact], observe: bool = False) -> Params:
        """`params` after the edit, with graph to the network's parameters.

        Args:
            model: The model as a function of `params`.
            params: The edited parameters as they are.
            facts: Of one edit.
            observe: Take the factors into the statistics that they are normalized with, as in training.
        """
        layers = linear_layers(model.model, self.names)
        factors = gradient_factors(model, params, layers, target_batch(facts))
        features = []  # of each layer, (num_tokens, in_features + out_features)
        for key, (inputs, grads) in zip(self.keys, factors, strict=True):
            used = (grads != 0).any(-1)  # padding has no gradient, nor has a prompt after the last layer
            features.append(torch.cat([inputs[used], grads[used]], 1))
            if observe:
                self.statistics[key].update(features[-1])
        for index, (layer, key, changed) in enumerate(zip(layers, self.keys, features, strict=True)):
            changed = self.statistics[key].normalize(changed)
            for block in self.networks[key]:
                changed = block(changed, self.places[index])
            rows, columns = layer.shape(params)
            into, out = changed.split([columns, rows], 1)
            params = layer.add(params, -self.alphas[index] * out.T @ into)
        return params

    def build(self) -> EditFunction:
        """An editor for the layers that the network is of: one step, or none where the constraint holds.

        Raises:
            TypeError: When called, for another constraint than a [`ContinuationConstraint`] or a [`JointConstraint`].
            ValueError: When called, for other parameters.
        """

        @torch.no_grad()
        def write(model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int) -> Params:
            if list(params) != self.names:
                raise ValueError(f"This MEND edits {', '.join(self.names)}, got {', '.join(params)}.")
            return self.updated(model, params, facts_of(constraint))

        return one_step(write)


def mend_loss(mend: Mend, model: PreTrainedModel, example: MendExample, edit_weight: float = 0.1) -> Tensor:
    """`c_e * -log p_after(y | x_e') + KL(p_before(. | x_loc) || p_after(. | x_loc))`, Eq. 4, with graph to `mend`.

    The first is a mean over the target's tokens and the facts, the second over the text's tokens. The statistics that
    factors are normalized with take the example's in.
    """
    functional = FunctionalModel(model, mend.names, replay=False)
    params = {name: model.get_parameter(name).detach() for name in mend.names}
    text = {"input_ids": torch.tensor([list(example.unrelated)], device=model.device)}
    with eval_mode(model), as_written(model), torch.enable_grad():
        after = mend.updated(functional, params, facts_of(example.edit), observe=True)
        said = target_loss(functional, after, target_batch(facts_of(example.rephrased)))
        with torch.no_grad():
            reference = functional(params, **text, use_cache=False).logits
        return edit_weight * said + locality_loss(reference, functional(after, **text, use_cache=False).logits)


def train_mend(
    mend: Mend,
    model: PreTrainedModel,
    examples: Sequence[MendExample],
    num_steps: int,
    *,
    learning_rate: float = 1e-6,
    alpha_learning_rate: float = 1e-4,
    edit_weight: float = 0.1,
    batch_size: int = 10,
    max_norm: float = 100.0,
    seed: int = 0,
    progress: str | None = "mend",
) -> list[float]:
    """Trains an editor network with Adam on [`mend_loss`]; the model stays as it is.

    Args:
        mend: The network, trained in place.
        model: The model that it was made for.
        examples: Each is drawn as often as the others, in an order of chance.
        num_steps: Updates.
        learning_rate: Adam's, for the networks; the defaults are those of the authors' code.
        alpha_learning_rate: Adam's, for the layers' alphas.
        edit_weight: c_e.
        batch_size: Examples of an update.
        max_norm: Gradients are clipped to this norm.
        seed: Of the order.
        progress: Title of the progress bar, none if `None`.

    Returns:
        The mean loss of the examples of each update.

    Raises:
        ValueError: Without an example.
    """
    if not examples:
        raise ValueError("There is no example to train MEND on; give edits that have another wording.")
    groups = [{"params": mend.networks.parameters()}, {"params": [mend.alphas], "lr": alpha_learning_rate}]
    optimizer, generator = torch.optim.Adam(groups, learning_rate), torch.Generator().manual_seed(seed)
    order, history = [], []
    for _ in tqdm(range(num_steps), desc=progress, disable=progress is None):
        optimizer.zero_grad()
        history.append(0.0)
        for _ in range(batch_size):
            order = order or torch.randperm(len(examples), generator=generator).tolist()
            loss = mend_loss(mend, model, examples[order.pop()], edit_weight) / batch_size
            loss.backward()
            history[-1] += loss.item()
        nn.utils.clip_grad_norm_(mend.parameters(), max_norm)
        optimizer.step()
    return history
