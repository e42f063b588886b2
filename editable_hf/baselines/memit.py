"""MEMIT: many facts are written at once into the feed-forward matrices of several layers, by least squares.

Meng et al. (2023), "Mass-Editing Memory in a Transformer". For each fact one searches the hidden state `z`, after the
last edited layer and at the subject's last token, with which the model says the target. Each layer, from the first to
the last, then takes an equal share of what is still missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from editable_hf.baselines.facts import one_step
from editable_hf.baselines.key_covariance import KeyCovariance
from editable_hf.baselines.linear_layers import linear_layers
from editable_hf.baselines.value_search import (
    Essence,
    SubjectRows,
    ValueSearch,
    keys_and_values,
    search_values,
    subjects_of,
)
from editable_hf.core.constraints import Constraint
from editable_hf.core.editing import EditFunction
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel

# A whole hidden state is bounded more tightly than what one feed-forward layer adds to it.
MEMIT_SEARCH = ValueSearch(max_norm=0.75)


def memit(
    covariances: Mapping[str, KeyCovariance],
    *,
    subject_ends: Sequence[int] | None = None,
    prefixes: Sequence[Sequence[int]] = (),
    essences: Sequence[Essence] | None = None,
    covariance_weight: float = 15_000.0,
    search: ValueSearch = MEMIT_SEARCH,
    batch_size: int = 16,
) -> EditFunction:
    """Mass-editing, Eq. 14: `Delta = R K^T (lambda C + K K^T)^-1` for each layer, K the keys of all facts.

    The residual R of the l-th of L layers is `(z - h) / (L - l + 1)`, h the hidden states after the last layer as the
    layers before the l-th, already changed, leave them (Eq. 20, Algorithm 1).

    Args:
        covariances: C of each edited layer, see [`key_covariances`].
        subject_ends: For each fact the position of its subject's last token in the prompt; the prompt's last if not
            given.
        prefixes: Token ids of texts that may stand before a prompt; keys are means over them.
        essences: For each fact a neutral prompt about its subject, see [`Subject`], whose continuation is to stay.
        covariance_weight: lambda: how much keys of ordinary text count against those of the facts. The paper has
            15,000 for GPT-J and 20,000 for GPT-NeoX; fewer facts or a smaller model want less.
        search: How z is found.
        batch_size: Facts whose z are searched for together.

    Returns:
        An editor for `edit(model, constraint, memit(covariances), list(covariances), max_steps=25)` with a
        [`JointConstraint`] of [`ContinuationConstraint`]s, or one of these. `max_steps` is that of the search for z;
        the result counts one step, or 0 if the constraint held.

    Raises:
        TypeError: When called, for another constraint.
        ValueError: When called, for other parameters than weights of linear layers in decoder layers, or subjects that
            do not fit.
    """

    def write(model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int) -> Params:
        layers = linear_layers(model.model, params)
        subjects = subjects_of(constraint, subject_ends, essences)
        bos, block = model.model.config.bos_token_id, block_of(model.model, layers[-1].weight)
        starts = range(0, len(subjects), batch_size)
        chunks = [SubjectRows.of(subjects[start : start + batch_size], prefixes, bos) for start in starts]
        shifts = torch.cat([search_values(model, params, rows, block, search, max_steps) for rows in chunks])
        whole = FunctionalModel(model.model, list(params), replay=False)  # or the states of all facts would be kept
        wanted = _read(whole, params, chunks, layers[-1].module, block)[1] + shifts
        for index, layer in enumerate(layers):
            keys, hidden = _read(whole, params, chunks, layer.module, block)
            residuals = (wanted - hidden) / (len(layers) - index)
            change = least_squares_update(residuals, keys, covariances[layer.weight], covariance_weight)
            params = layer.add(params, change)
        return params

    return one_step(write)


def _read(
    model: FunctionalModel, params: Params, chunks: Sequence[SubjectRows], layer: nn.Module, block: nn.Module
) -> tuple[Tensor, Tensor]:
    """The facts' keys, `(num_facts, in_features)`, and hidden states, `(num_facts, hidden_size)`, in float64."""
    found = [(rows, *keys_and_values(model, params, rows, layer, block)) for rows in chunks]
    keys = torch.cat([rows.mean(keys) for rows, keys, _ in found])
    return keys.double(), torch.cat([states[rows.first] for rows, _, states in found]).double()


def least_squares_update(residuals: Tensor, keys: Tensor, covariance: KeyCovariance, weight: float) -> Tensor:
    """The matrix D that minimizes `|| D K - R ||^2 + weight * tr(D C D^T)`, `R K^T (weight C + K K^T)^-1`.

    By the Woodbury identity: the system that is solved is as large as the number of facts, not as a key.

    Args:
        residuals: R, `(num_facts, out_features)`.
        keys: K, `(num_facts, in_features)`.
        covariance: C.
        weight: lambda.

    Returns:
        `(out_features, in_features)`.
    """
    solved = covariance.solve(keys) / weight  # (num_facts, in_features)
    gram = torch.eye(len(keys)).to(solved) + keys @ solved.T
    return residuals.T @ torch.linalg.solve(gram, solved)


def block_of(model: nn.Module, name: str) -> nn.Module:
    """The layer of the model that a parameter is in: the outermost module on its path that stands in a list.

    Raises:
        ValueError: If none does.
    """
    parts = name.split(".")
    for end in range(1, len(parts)):
        if isinstance(model.get_submodule(".".join(parts[: end - 1])), nn.ModuleList):
            return model.get_submodule(".".join(parts[:end]))
    raise ValueError(
        f"{name} is in no list of layers of {type(model).__name__}, but MEMIT asks for what leaves a layer; "
        'name weights of decoder layers, such as "model.layers.3.mlp.down_proj.weight".'
    )
