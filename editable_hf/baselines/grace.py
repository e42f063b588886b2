"""GRACE: edits as a codebook beside one layer; the weights stay, and so does all that is far from every edit.

Hartvigsen et al. (2023), "Aging with GRACE: Lifelong Model Editing with Discrete Key-Value Adaptors". An edit keeps
what enters the layer at the end of its prompt, the key, and trains what should leave it there, the value. Where a
later input comes within a key's *deferral radius*, the value takes the place of the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from editable_hf.baselines.facts import facts_of
from editable_hf.baselines.fine_tuning import until_it_holds
from editable_hf.baselines.linear_layers import linear_layers
from editable_hf.core.constraints import Constraint, JointConstraint
from editable_hf.core.continuations import Fact, target_batch
from editable_hf.core.editing import EditResult
from editable_hf.core.functional import FunctionalModel, as_written, eval_mode
from editable_hf.core.selection import select_parameters
from editable_hf.seams.torch_seam import intercepted


class Grace:
    """A codebook of edits at the output of one linear layer.

    It changes no parameter, so it is no editor of [`edit`] and gives no patch: `grace.edit(constraint)` writes to the
    codebook, and within `with grace.applied():` the model answers from it.

    Every token looks into the codebook by itself. That is the paper's rule, which looks at the input's last token, for
    a text that is written token by token, and gives the same where all tokens are read at once.

    Args:
        model: A decoder-only language model; it is never changed.
        layer: Weight of the linear layer, see [`select_parameters`].
        radius: The deferral radius of a new key, its only hyperparameter in the paper (epsilon_init); Euclidean.
        learning_rate: Adam's, for the values.

    Attributes:
        keys: `(num_entries, in_features)`.
        values: `(num_entries, out_features)`.
        radii: `(num_entries,)`.
        targets: Token ids that each entry stands for.

    Raises:
        ValueError: If `layer` is not the weight of one linear layer.

    Example:
        >>> grace = Grace(model, "layers.27.mlp.down_proj.weight")  # doctest: +SKIP
        >>> grace.edit(constraint)  # doctest: +SKIP
        >>> with grace.applied():  # doctest: +SKIP
        ...     model.generate(**inputs)
    """

    def __init__(self, model: PreTrainedModel, layer: str, *, radius: float = 1.0, learning_rate: float = 1.0):
        found = linear_layers(model, selected := select_parameters(model, layer))
        if len(found) != 1:
            raise ValueError(f"GRACE has one layer, got {', '.join(selected)}.")
        self.model, self.radius, self.learning_rate = model, radius, learning_rate
        self._layer, (weight,) = found[0], selected.values()
        self._params = {self._layer.weight: weight.detach()}
        width, inside = self._layer.shape(self._params)
        nothing = weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))
        self.keys, self.values, self.radii = nothing.view(0, inside), nothing.view(0, width), nothing
        self.targets: list[list[int]] = []

    def edit(self, constraint: Constraint, max_steps: int = 100) -> EditResult:
        """Writes the facts of a constraint to the codebook, one after another; those that hold are left out.

        Args:
            constraint: A [`ContinuationConstraint`] or a [`JointConstraint`] of such.
            max_steps: Adam's steps for a value; it is trained until its own constraint holds.

        Returns:
            Without parameters; it counts one step, or 0 if the constraint held.

        Raises:
            TypeError: For another constraint.
        """
        parts = constraint.constraints if isinstance(constraint, JointConstraint) else [constraint]
        facts = facts_of(constraint)
        with eval_mode(self.model), as_written(self.model):
            history = [self._value_of(constraint)]
            if history[0] > 0:
                for part, fact in zip(parts, facts, strict=True):
                    if self._value_of(part) > 0:
                        self._learn(part, fact, max_steps)
                history.append(self._value_of(constraint))
        return EditResult({}, history[-1] <= 0, len(history) - 1, self.keys.new_tensor(history[-1]), history)

    @contextmanager
    def applied(self) -> Iterator[PreTrainedModel]:
        """Within, the model answers from the codebook where it has an entry, and elsewhere as it is, bit for bit."""
        with intercepted([self._layer.module], self._answer):
            yield self.model

    def _answer(self, module: nn.Module, forward: Callable, inputs: Tensor) -> Tensor:
        output = forward(inputs)
        if not self.targets:
            return output
        distance, nearest = self._distances(inputs).min(-1)
        values = self.values[nearest].to(output.dtype)
        return torch.where((distance <= self.radii[nearest]).unsqueeze(-1), values, output)

    def _distances(self, inputs: Tensor) -> Tensor:
        # Not by way of products, which are not 0 where key and input are equal.
        return torch.cdist(inputs.to(self.keys.dtype), self.keys, compute_mode="donot_use_mm_for_euclid_dist")

    @torch.no_grad()
    def _value_of(self, constraint: Constraint) -> float:
        with self.applied():
            return constraint(FunctionalModel(self.model, [], replay=False), {}).item()

    def _learn(self, part: Constraint, fact: Fact, max_steps: int) -> None:
        functional, seen = FunctionalModel(self.model, list(self._params)), []

        def keep(module: nn.Module, forward: Callable, inputs: Tensor) -> Tensor:
            output = forward(inputs)
            seen.extend(each.flatten(0, -2)[-1] for each in (inputs, output))
            return output

        with torch.no_grad(), intercepted([self._layer.module], keep):
            prompt = target_batch([Fact(fact.prompt, fact.target[:0])])
            functional(self._params, **prompt.inputs, use_cache=False)
        index = self._entry(*seen, fact.target.tolist())
        start, value = self.values, self.values[index].clone().requires_grad_()

        def with_value() -> dict[str, Tensor]:
            self.values = start.index_put((torch.tensor(index),), value)
            return self._params

        with self.applied(), torch.enable_grad():
            optimizer = torch.optim.Adam([value], self.learning_rate)
            until_it_holds(functional, part, with_value, optimizer, max_steps)
        self.values = self.values.detach()

    def _entry(self, key: Tensor, value: Tensor, target: list[int]) -> int:
        """The entry that the edit trains (Algorithm 1): a new one, or the nearest where it stands for the same.

        *Expand*: a near key with this target grows to reach here. *Split*: two near keys with different targets share
        the distance between them. *Add*: what is near to no key gets one of its own.
        """
        radius = self.radius
        if self.targets:
            distance, nearest = (each.item() for each in self._distances(key.unsqueeze(0))[0].min(0))
            if distance <= self.radii[nearest] + self.radius:
                if self.targets[nearest] == target or distance == 0:  # or the same prompt is given a new target
                    self.radii[nearest] = max(self.radii[nearest].item(), distance)
                    self.targets[nearest] = target
                    return nearest
                self.radii[nearest] = radius = distance / 2
        self.keys, self.values = torch.cat([self.keys, key[None]]), torch.cat([self.values, value[None]])
        self.radii = torch.cat([self.radii, self.radii.new_tensor([radius])])
        self.targets.append(target)
        return len(self.targets) - 1
