"""The keys of a linear layer over ordinary text: which directions an edit may write to without harm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from editable_hf.baselines.linear_layers import inputs_kept, linear_layers
from editable_hf.core.continuations import Fact, target_batch
from editable_hf.core.functional import eval_mode
from editable_hf.core.selection import select_parameters
from editable_hf.models.beam_search import batches_by_length


@dataclass(frozen=True)
class KeyCovariance:
    """`C = E[k k^T]` of what enters a linear layer, uncentered, as ROME and MEMIT use it.

    Args:
        moment: C, `(in_features, in_features)`, float64; a tensor to be saved like any other.
        ridge: Added to C's diagonal, as a fraction of its mean: directions that the text never takes leave C singular.
    """

    moment: Tensor
    ridge: float = 1e-3

    @cached_property
    def _factor(self) -> Tensor:  # of every edit with this layer: made once
        ridge = self.ridge * self.moment.diagonal().mean()
        return torch.linalg.cholesky(self.moment + ridge * torch.eye(len(self.moment)).to(self.moment))

    def solve(self, keys: Tensor) -> Tensor:
        """`C^-1 k` for each key, both `(num_keys, in_features)`; in float64."""
        return torch.cholesky_solve(keys.to(self.moment).T, self._factor).T


def key_covariances(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    layers: str | Iterable[str],
    *,
    ridge: float = 1e-3,
    batch_size: int = 8,
    progress: str | None = "keys",
) -> dict[str, KeyCovariance]:
    """The covariance of the keys of linear layers over text, in eval mode.

    Holds one square matrix for each layer and the activations of one batch. A layer needs more tokens than it has
    inputs, better a hundred times as many.

    Args:
        model: A decoder-only language model; it is left as it was.
        rows: Token ids of the texts.
        layers: Weights of linear layers, see [`select_parameters`].
        ridge: See [`KeyCovariance`].
        batch_size: Texts of similar length that run together.
        progress: Title of the progress bar, none if `None`.

    Returns:
        By the names of the weights.

    Raises:
        ValueError: If one of `layers` is not the weight of a linear layer.
    """
    found = linear_layers(model, select_parameters(model, layers))
    sums, count = dict.fromkeys((layer.weight for layer in found), 0.0), 0
    batches = batches_by_length([len(row) for row in rows], batch_size)
    with eval_mode(model), torch.no_grad(), inputs_kept(layer.module for layer in found) as kept:
        for indices in tqdm(batches, desc=progress, disable=progress is None, unit="batch"):
            texts = [torch.tensor(rows[index], device=model.device) for index in indices]
            inputs = target_batch([Fact(text, text[:0]) for text in texts]).inputs
            model.base_model(**inputs, use_cache=False)  # without the output layer, the dearest
            real = inputs["attention_mask"] == 1
            count += int(real.sum())
            for layer in found:
                keys = kept[layer.module].flatten(0, -2)[real.flatten()].double()  # (num_tokens, in_features)
                sums[layer.weight] = sums[layer.weight] + keys.T @ keys
    return {name: KeyCovariance(total / count, ridge) for name, total in sums.items()}
