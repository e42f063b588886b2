"""The six editor functions of section 4.1, as pairs of pure functions.

An editor turns the gradient of the constraint `l_e` into an additive update of the edited parameters. Parameters,
gradients and updates are dicts of tensors keyed by qualified name. Nothing is changed in place, and every
hyperparameter may be a tensor that requires grad, so that Editable Training can differentiate through the editor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from editable_hf.core.flat import FlatLayout
from editable_hf.core.rmsprop_step import rmsprop_step

Params = dict[str, Tensor]
ScalarLike = float | Tensor

# Inside the square root on purpose. At a coordinate whose gradient is exactly 0, sqrt has an infinite derivative:
# with eps outside the root the edit itself is fine and the gradient *through* it is NaN.
DEFAULT_EPS = 1e-6


class Editor(NamedTuple):
    """A gradient editor as two pure functions.

    Attributes:
        init: `init(params) -> state` for the start of an edit.
        update: `update(grads, state) -> (updates, state)`; apply with [`apply_updates`].
        flatten: `flatten(layout) -> editor`, the same editor for parameters that [`FlatLayout.pack`] made few vectors
            of: an edit is then far fewer kernels. The vectors may be rows, one for each of several edits. `None` for
            an editor that treats parameters by their names.
    """

    init: Callable[[Params], Any]
    update: Callable[[Params, Any], tuple[Params, Any]]
    flatten: Callable[[FlatLayout], Editor] | None = None


class EmptyState(NamedTuple):
    """State of an editor that remembers nothing."""


class ScaledGDState(NamedTuple):
    """`norm`: global gradient norm of the first step, scalar or one for each edit; `None` before it."""

    norm: Tensor | None


class RMSPropState(NamedTuple):
    """`mean_square`: running mean of the squared gradients; `None` before the first step."""

    mean_square: Params | None


class MomentumState(NamedTuple):
    """`velocity`: the accumulated direction nu, already multiplied by the learning rate."""

    velocity: Params


class AdamState(NamedTuple):
    """Bias-corrected running means of the gradient and of its square, and the sums of weights behind them."""

    mean: Params
    mean_square: Params
    weight: ScalarLike
    weight_square: ScalarLike


def _nameless(init: Callable[[Params], Any], update: Callable[[Params, Any], tuple[Params, Any]]) -> Editor:
    """An editor that does not care how its parameters are called, or how many they are."""
    return Editor(init, update, lambda layout: Editor(init, update))


def apply_updates(params: Params, updates: Params) -> Params:
    """Returns `params + updates`, name by name, as new tensors."""
    return {name: param + updates[name] for name, param in params.items()}


def gd(learning_rate: ScalarLike) -> Editor:
    """Gradient descent, Eq. 1: `theta - alpha * grad`."""

    def update(grads: Params, state: EmptyState) -> tuple[Params, EmptyState]:
        return {name: -learning_rate * grad for name, grad in grads.items()}, state

    return _nameless(lambda params: EmptyState(), update)


def scaled_gd(learning_rate: ScalarLike, eps: float = 1e-12) -> Editor:
    """Gradient descent whose learning rate is divided by the global gradient norm of the *first* step.

    Args:
        learning_rate: alpha; the length of the first step.
        eps: Added to the squared norm, inside the root; keeps the derivative finite when the gradient is 0.
    """

    def update_by(sum_squares: Callable[[Tensor], Tensor]) -> Callable:
        def update(grads: Params, state: ScaledGDState) -> tuple[Params, ScaledGDState]:
            norm = state.norm
            if norm is None:
                norm = (sum(sum_squares(grad.square()) for grad in grads.values()) + eps).sqrt()
            return {name: -(learning_rate / norm) * grad for name, grad in grads.items()}, ScaledGDState(norm)

        return update

    def init(params: Params) -> ScaledGDState:
        return ScaledGDState(None)

    by_vector = Editor(init, update_by(lambda squares: squares.sum(-1, keepdim=True)))
    return Editor(init, update_by(Tensor.sum), lambda layout: by_vector)


def rprop(learning_rate: ScalarLike) -> Editor:
    """Resilient backpropagation as in section 4.1: `theta - alpha * sign(grad)`.

    The sign has derivative 0, so gradient reaches theta only directly, and alpha through the step.
    """

    def update(grads: Params, state: EmptyState) -> tuple[Params, EmptyState]:
        return {name: -learning_rate * grad.sign() for name, grad in grads.items()}, state

    return _nameless(lambda params: EmptyState(), update)


def rmsprop(learning_rate: ScalarLike, beta: ScalarLike = 0.5, eps: float = DEFAULT_EPS) -> Editor:
    """RMSProp as in section 4.1, with `rms_0 = grad_0 ** 2` and `eps` inside the root.

    `theta - alpha * grad / sqrt(rms + eps)` with `rms = beta * rms + (1 - beta) * grad ** 2`. The first step is
    therefore nearly `alpha * sign(grad)`. `torch.optim.RMSprop` differs in both points.

    Args:
        learning_rate: alpha.
        beta: Decay of the running mean, in [0, 1].
        eps: Added to the running mean before the root.
    """

    def update(grads: Params, state: RMSPropState) -> tuple[Params, RMSPropState]:
        old = state.mean_square or dict.fromkeys(grads)
        steps = {name: rmsprop_step(grad, old[name], learning_rate, beta, eps) for name, grad in grads.items()}
        return {name: step[0] for name, step in steps.items()}, RMSPropState({n: step[1] for n, step in steps.items()})

    return _nameless(lambda params: RMSPropState(None), update)


def momentum(learning_rate: ScalarLike, mu: ScalarLike = 0.5) -> Editor:
    """Momentum GD as in section 4.1: `nu = alpha * grad + mu * nu`, starting from 0; `theta - nu`."""

    def init(params: Params) -> MomentumState:
        return MomentumState({name: torch.zeros_like(param) for name, param in params.items()})

    def update(grads: Params, state: MomentumState) -> tuple[Params, MomentumState]:
        velocity = {name: learning_rate * grad + mu * state.velocity[name] for name, grad in grads.items()}
        return {name: -nu for name, nu in velocity.items()}, MomentumState(velocity)

    return _nameless(init, update)


def adam(learning_rate: ScalarLike, beta1: ScalarLike = 0.2, beta2: ScalarLike = 0.9, eps: float = 1e-8) -> Editor:
    """Adam with bias correction (Kingma & Ba, 2014), as `torch.optim.Adam` has it; `beta1` restricted to [0.1, 1].

    The bias-corrected mean obeys `m_t = m_{t-1} + (g_t - m_{t-1}) / s_t` with `s_t = 1 + beta + ... + beta^{t-1}`,
    which is the textbook form without its 0/0 at `beta = 1`, where it becomes the plain average.

    Args:
        learning_rate: alpha.
        beta1: Decay of the mean gradient, in [0.1, 1] (section 4.1: smaller values would make it RMSProp).
        beta2: Decay of the mean squared gradient, in [0, 1].
        eps: Added to the root of the mean square.

    Raises:
        ValueError: If `beta1` is outside [0.1, 1].
    """
    value = beta1.item() if isinstance(beta1, Tensor) else beta1
    if not 0.1 - 1e-6 <= value <= 1.0:
        raise ValueError(f"`beta1` must be in [0.1, 1] (section 4.1), got {value:g}; use `rmsprop` for beta1 = 0.")

    def init(params: Params) -> AdamState:
        zeros = {name: torch.zeros_like(param) for name, param in params.items()}
        return AdamState(zeros, zeros, 0.0, 0.0)

    def update(grads: Params, state: AdamState) -> tuple[Params, AdamState]:
        weight, weight_square = 1 + beta1 * state.weight, 1 + beta2 * state.weight_square
        mean = {name: m + (grads[name] - m) / weight for name, m in state.mean.items()}
        mean_square = {name: v + (grads[name].square() - v) / weight_square for name, v in state.mean_square.items()}
        updates = {name: -learning_rate * m / (_root(mean_square[name]) + eps) for name, m in mean.items()}
        return updates, AdamState(mean, mean_square, weight, weight_square)

    return _nameless(init, update)


def _root(squares: Tensor) -> Tensor:
    """Their roots, with derivative 0 at 0, where that of the root has no bound and would turn all into NaN."""
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


class _EditorSpec(NamedTuple):
    factory: Callable[..., Editor]
    defaults: dict[str, float]
    bounds: dict[str, tuple[float, float]]  # of the hyperparameters other than the learning rate, open interval


EDITORS: dict[str, _EditorSpec] = {
    "gd": _EditorSpec(gd, {"learning_rate": 1e-2}, {}),
    "scaled_gd": _EditorSpec(scaled_gd, {"learning_rate": 1e-1}, {}),
    "rprop": _EditorSpec(rprop, {"learning_rate": 1e-3}, {}),
    "rmsprop": _EditorSpec(rmsprop, {"learning_rate": 1e-3, "beta": 0.5}, {"beta": (0.0, 1.0)}),
    "momentum": _EditorSpec(momentum, {"learning_rate": 1e-2, "mu": 0.5}, {"mu": (0.0, 1.0)}),
    "adam": _EditorSpec(
        adam, {"learning_rate": 1e-3, "beta1": 0.2, "beta2": 0.9}, {"beta1": (0.1, 1.0), "beta2": (0.0, 1.0)}
    ),
}


class LearnableEditor(nn.Module):
    """An editor whose hyperparameters are trained with the model (end of section 3.2).

    Each hyperparameter is one scalar for all edited tensors. A learned one is stored unconstrained (the logarithm of
    the learning rate, the logit of a decay within its interval), so that no optimizer step can leave its range; one
    that is held fixed is a plain number.

    Args:
        name: A key of `EDITORS`.
        learn_learning_rate: Train alpha too. Table 6's rows hold it fixed.
        learn_decays: Train the other hyperparameters (beta, mu, beta1, beta2).
        hyperparameters: Starting values; those left out take the editor's defaults.

    Raises:
        ValueError: For an unknown editor, an unknown hyperparameter or a value out of range.

    Example:
        >>> learnable = LearnableEditor("rmsprop", learning_rate=3e-4)
        >>> editor = learnable.build()
        >>> sorted(learnable.values())
        ['beta', 'learning_rate']
    """

    def __init__(
        self,
        name: str = "rmsprop",
        learn_learning_rate: bool = False,
        learn_decays: bool = True,
        **hyperparameters: float,
    ):
        super().__init__()
        if name not in EDITORS:
            raise ValueError(f"Unknown editor {name!r}. Choose one of: {', '.join(EDITORS)}.")
        self.name, self._spec = name, EDITORS[name]
        unknown = set(hyperparameters) - set(self._spec.defaults)
        if unknown:
            raise ValueError(
                f"Editor {name!r} has no hyperparameter {', '.join(sorted(map(repr, unknown)))}. "
                f"It has: {', '.join(self._spec.defaults)}."
            )
        self._fixed: dict[str, float] = {}
        for key, value in {**self._spec.defaults, **hyperparameters}.items():
            self._check(key, value)
            if learn_learning_rate if key == "learning_rate" else learn_decays:
                self.register_parameter(key, nn.Parameter(torch.tensor(self._unconstrain(key, value))))
            else:
                self._fixed[key] = float(value)

    def _check(self, key: str, value: float) -> None:
        low, high = self._spec.bounds.get(key, (0.0, math.inf))
        if not low < value < high:
            raise ValueError(f"`{key}` of editor {self.name!r} must lie between {low} and {high}, got {value}.")

    def _unconstrain(self, key: str, value: float) -> float:
        if key not in self._spec.bounds:
            return math.log(value)
        low, high = self._spec.bounds[key]
        return math.log((value - low) / (high - value))

    def hyperparameters(self) -> dict[str, ScalarLike]:
        """The constrained values: tensors with graph where learned, floats where fixed."""
        values: dict[str, ScalarLike] = {}
        for key in self._spec.defaults:
            if key in self._fixed:
                values[key] = self._fixed[key]
            elif key in self._spec.bounds:
                low, high = self._spec.bounds[key]
                values[key] = low + (high - low) * self.get_parameter(key).sigmoid()
            else:
                values[key] = self.get_parameter(key).exp()
        return values

    def values(self) -> dict[str, float]:
        """The constrained values as Python floats."""
        values = self.hyperparameters()
        return {key: value.item() if isinstance(value, Tensor) else value for key, value in values.items()}

    def build(self) -> Editor:
        """The editor at the current values; gradient flows through it to the learned ones."""
        return self._spec.factory(**self.hyperparameters())
