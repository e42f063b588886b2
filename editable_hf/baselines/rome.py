"""ROME: a fact is written into one feed-forward layer by a rank-one update of its second matrix.

Meng et al. (2022), "Locating and Editing Factual Associations in GPT". The matrix is a memory: the state at the last
token of the subject is a key `k*`, and what comes out, the value, is looked up by later tokens. The update sends `k*`
to the value `v*` that says the target, and of all that do, it changes the values of ordinary keys least.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from editable_hf.baselines.facts import one_step
from editable_hf.baselines.key_covariance import KeyCovariance
from editable_hf.baselines.linear_layers import linear_layers
from editable_hf.baselines.value_search import (
    ROME_SEARCH,
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


def rome(
    covariance: KeyCovariance,
    *,
    subject_ends: Sequence[int] | None = None,
    prefixes: Sequence[Sequence[int]] = (),
    essences: Sequence[Essence] | None = None,
    search: ValueSearch = ROME_SEARCH,
) -> EditFunction:
    """Rank-One Model Editing, Eq. 2: `W + Lambda (C^-1 k*)^T` with `Lambda = (v* - W k*) / ((C^-1 k*)^T k*)`.

    `C^-1` is applied to the mean key over the prefixes (Eq. 3); the prompt's own key is sent to v* exactly. Several
    facts are written one after another, each into what the one before it left.

    Args:
        covariance: C of the edited layer, see [`key_covariances`].
        subject_ends: For each fact the position of its subject's last token in the prompt; the prompt's last if not
            given.
        prefixes: Token ids of texts that may stand before a prompt: the fact should be said after each (x_j).
        essences: For each fact a neutral prompt about its subject, see [`Subject`], whose continuation is to stay.
            Without it, nothing holds the rest of what the model says of the subject.
        search: How v* is found.

    Returns:
        An editor for `edit(model, constraint, rome(covariance), "layers.3.mlp.down_proj.weight", max_steps=20)` with
        a [`ContinuationConstraint`] or a [`JointConstraint`] of such. `max_steps` is that of the search for v*; the
        result counts one step, or 0 if the constraint held.

    Raises:
        TypeError: When called, for another constraint.
        ValueError: When called, for other parameters than the weight of one linear layer, or subjects that do not fit.
    """

    def write(model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int) -> Params:
        if len(params) != 1:
            raise ValueError(f"ROME edits the weight of one linear layer, got {', '.join(params)}.")
        (layer,) = linear_layers(model.model, params)
        subjects = subjects_of(constraint, subject_ends, essences)
        for subject in subjects:
            rows = SubjectRows.of([subject], prefixes, model.model.config.bos_token_id)
            change = search_values(model, params, rows, layer.module, search, max_steps)[0]
            keys, _ = keys_and_values(model, params, rows, layer.module, layer.module)
            direction = covariance.solve(rows.mean(keys))[0]
            params = layer.add(params, rank_one_update(keys[0].to(direction), change.to(direction), direction))
        return params

    return one_step(write)


def rank_one_update(key: Tensor, change: Tensor, direction: Tensor) -> Tensor:
    """The matrix along `direction` that sends `key` to `change`, `(out_features, in_features)`."""
    return torch.outer(change, direction) / (direction @ key)
