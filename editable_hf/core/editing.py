"""`Edit(theta, l_e)` of Eq. 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm

from editable_hf.core.constraints import Constraint
from editable_hf.core.editors import Editor, Params, apply_updates
from editable_hf.core.flat import FlatLayout
from editable_hf.core.functional import FunctionalModel, as_written, eval_mode, widened
from editable_hf.core.layer_norm import quick_layer_norms
from editable_hf.core.selection import select_parameters
from editable_hf.seams.torch_seam import uncompiled

# An editor that takes no gradient steps: `editor(model, constraint, params, max_steps)` returns the parameters that it
# chose, `l_e` for them, and the values of `l_e` from the start to there.
EditFunction = Callable[[FunctionalModel, Constraint, Params, int], tuple[Params, Tensor, list[float]]]
AnyEditor = Editor | EditFunction


class EditResult(NamedTuple):
    """What an edit did.

    Attributes:
        params: The edited parameters by qualified name. With graph only if `create_graph` was set.
        success: Whether `l_e <= 0` holds for them.
        num_steps: Gradient steps taken, 0 if the constraint held from the start.
        loss: Last value of `l_e`, scalar; with graph only if `create_graph` was set.
        history: `l_e` before each step and after the last, `num_steps + 1` values.
        failure: Why the edit ended early without success: a number that is not finite, and where. All else is then as
            it was before that step.
    """

    params: Params
    success: bool
    num_steps: int
    loss: Tensor
    history: list[float]
    failure: str | None = None


def edit(
    model: nn.Module,
    constraint: Constraint,
    editor: AnyEditor,
    layers: str | Iterable[str],
    max_steps: int = 10,
    create_graph: bool = False,
    replay: bool = True,
) -> EditResult:
    """Moves the parameters of `layers` until `constraint` holds or `max_steps` steps were taken (Eq. 1).

    The constraint is evaluated before each step and after the last. The edit runs in eval mode, without autocast, and
    never changes the model: apply the result with [`edited`]. Steps on parameters in half precision are summed in
    float32. An edit that does not reach its goal is a result, not an error; so is one that meets NaN or infinity, see
    [`EditResult`].

    Args:
        model: Any unwrapped module; a compiled one runs uncompiled. With `create_graph`, `sdpa` attention runs in its
            form that can be differentiated twice; kernels from elsewhere (flash-attention) have none.
        constraint: Called as `constraint(functional_model, params)`, returns a scalar.
        editor: From [`rmsprop`] and its like, or [`LearnableEditor.build`]; or an [`EditFunction`], which chooses the
            parameters in its own way (the baselines that need no gradient).
        layers: What may move, see [`select_parameters`].
        max_steps: k in Eq. 1.
        create_graph: Keep the graph of the whole edit, so that `params` and `loss` are differentiable with respect
            to all of the model's parameters and the editor's hyperparameters.
        replay: Run only the part of the model that the edit changes (exact). `False` runs all of it at every step.

    Raises:
        ReplayError: If the model cannot be replayed, because it runs other modules at each call.
        TypeError: If `editor` is no editor.
        ValueError: If `layers` selects nothing or quantized weights, or the model is on several devices.

    Example:
        >>> result = edit(model, constraint, rmsprop(1e-3), "last_decoder_layer")  # doctest: +SKIP
        >>> with edited(model, result):  # doctest: +SKIP
        ...     model.generate(**inputs)
    """
    if max_steps < 0:
        raise ValueError(f"`max_steps` must be 0 or more, got {max_steps}.")
    if not callable(editor) and not isinstance(editor, Editor) or isinstance(editor, nn.Module):
        raise TypeError(
            f"`editor` must be an `Editor`, such as `rmsprop(1e-3)` or what `build()` of a LearnableEditor or of a "
            f"model's own editor returns, got a {type(editor).__name__}."
        )
    run = partial(_descend, editor) if isinstance(editor, Editor) else partial(_choose, editor)
    with prepared(model, editor, layers, create_graph, replay) as (functional_model, params):
        params, loss, history, failure = run(functional_model, constraint, params, max_steps)
    if not create_graph:
        params, loss = {name: param.detach() for name, param in params.items()}, loss.detach()
    return EditResult(params, failure is None and history[-1] <= 0, len(history) - 1, loss, history, failure)


@contextmanager
def prepared(
    model: nn.Module, editor: AnyEditor, layers: str | Iterable[str], create_graph: bool, replay: bool
) -> Iterator[tuple[FunctionalModel, Params]]:
    """Within the block the model runs as an edit needs it; the arguments are those of [`edit`].

    Yields:
        The model as a function of the parameters to edit, and these, to start from.
    """
    params = _parameters_to_edit(model := uncompiled(model), layers, editor)
    functional_model = FunctionalModel(model, list(params), create_graph, replay)
    if create_graph:  # frozen ones (sinusoidal position tables under "*") become leaves, and move as without graph
        params = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in params.items()}
    else:  # copies: after 0 steps the result must not share memory with the model
        params = {name: param.detach().clone() for name, param in params.items()}
    # Fused kernels of attention have no double backward. A forward that is differentiated once keeps them.
    attention = sdpa_kernel(SDPBackend.MATH) if create_graph else nullcontext()
    norms = quick_layer_norms(model) if create_graph else nullcontext()
    with eval_mode(model), as_written(model), attention, norms, torch.enable_grad():
        yield functional_model, params


def check_one_device(model: nn.Module) -> None:
    """Raises `ValueError` for a model that `device_map` spreads over several devices."""
    devices = {str(device) for device in getattr(model, "hf_device_map", {}).values()}
    if len(devices) > 1:
        raise ValueError(
            f"The model is spread over several devices ({', '.join(sorted(devices))}) by `device_map`: hooks move or "
            "load its weights at every call, and an edit would not see them. Load it on one device, without "
            "`device_map`."
        )


def _parameters_to_edit(model: nn.Module, layers: str | Iterable[str], editor: AnyEditor) -> Params:
    """The selected parameters; raises `ValueError` where gradient steps on them would fail."""
    check_one_device(model)
    params = select_parameters(model, layers)
    quantized = [name for name, param in params.items() if not param.is_floating_point()]
    if quantized and isinstance(editor, Editor):
        others = [name for name, param in model.named_parameters() if param.is_floating_point()]
        raise ValueError(
            f"{len(quantized)} of the {len(params)} selected parameters are quantized and cannot take small steps, "
            f"such as {quantized[0]} ({params[quantized[0]].dtype}). Load the model unquantized, or edit parameters "
            f"that hold floating-point numbers, for example: {', '.join(others[-3:]) or '(there are none)'}."
        )
    return params


@torch.no_grad()
def constraint_value(model: nn.Module, constraint: Constraint) -> float:
    """`l_e` of the model as it stands, before any step of [`edit`]; at most 0 where nothing is wrong."""
    with eval_mode(model), as_written(model):
        return constraint(FunctionalModel(model, []), {}).item()


Outcome = tuple[Params, Tensor, list[float], str | None]


def _descend(
    editor: Editor, model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int
) -> Outcome:
    """The steps of Eq. 1: parameters and `l_e` at the end, `l_e` at every step, and why they ended early.

    The model is only ever given numbers of its own precision, so `l_e` is that of the parameters that are returned.
    """
    layout = FlatLayout(params)
    if editor.flatten is None:  # it looks at the names
        pack, unpack = dict, dict
    else:
        pack, unpack, editor = layout.pack, layout.unpack, editor.flatten(layout)
    packed = pack(params)
    kinds = {key: value.dtype for key, value in packed.items()}
    # Small steps are lost when they are added in half precision, and squares of small gradients are 0 there.
    sums = {key: widened(value) for key, value in packed.items()}
    create_graph, state, history = model.create_graph, editor.init(sums), []
    grads, earlier = {}, None
    while True:
        if not create_graph:
            sums = {key: value.detach().requires_grad_() for key, value in sums.items()}
        packed = {key: value.to(kinds[key]) for key, value in sums.items()}
        params = unpack(packed)
        loss = constraint(model, params)
        (value,), norm = loss_values(loss.unsqueeze(0), [*grads.values(), *packed.values()])
        failure = None
        if not math.isfinite(norm) or not value < math.inf:  # or only the squares of large numbers are not
            failure = _failure(value, unpack(grads) if grads else {}, params, len(history))
        if failure is not None:
            return (params, loss, [value], failure) if earlier is None else (*earlier, history, failure)
        history.append(value)
        if value <= 0 or len(history) > max_steps:
            return params, loss, history, None
        earlier = params, loss
        found = torch.autograd.grad(
            loss, list(sums.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
        grads = dict(zip(sums, found, strict=True))
        with torch.set_grad_enabled(create_graph):
            updates, state = editor.update(grads, state)
            sums = apply_updates(sums, updates)


def _choose(
    choose: EditFunction, model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int
) -> Outcome:
    """What an editor without gradient steps chose; the parameters as they were where that is not finite."""
    chosen, loss, history = choose(model, constraint, params, max_steps)
    failure = _failure(history[-1], {}, chosen, len(history) - 1)
    if failure is None:
        return chosen, loss, history, None
    return params, loss.new_tensor(history[0]), history[:1], failure


@torch.no_grad()
def loss_values(losses: Tensor, tensors: list[Tensor]) -> tuple[list[float], float]:
    """Values of `l_e` and the norm of the tensors, brought to the CPU together: a GPU waits each time."""
    norm = get_total_norm(tensors)  # a tenth of the time that the largest absolute value takes
    *values, norm = torch.cat([losses, norm.to(losses.device, losses.dtype).unsqueeze(0)]).tolist()
    return values, norm


def _failure(value: float, grads: Params, params: Params, num_steps: int) -> str | None:
    """Why an edit cannot go on with this `l_e` and these tensors; minus infinity satisfies a constraint."""
    when = f"after step {num_steps}" if num_steps else "before the first step"
    for name, grad in grads.items():
        if not grad.isfinite().all():
            return f"the gradient of {name} is not finite in step {num_steps}"
    for name, param in params.items():
        if not param.isfinite().all():
            return f"{name} is not finite {when}"
    return None if value < math.inf else f"l_e is {value} {when}"


class EditStack:
    """Edits applied to a model one after another, and taken back in reverse order, bit for bit.

    Args:
        model: The model that is changed, in place.
    """

    def __init__(self, model: nn.Module):
        self.model = uncompiled(model)
        self._replaced: list[Params] = []

    def __len__(self) -> int:
        return len(self._replaced)

    def apply(self, result: EditResult | Mapping[str, Tensor]) -> None:
        """Gives the model the parameters of an edit.

        Args:
            result: An [`EditResult`] or its `params`.

        Raises:
            ValueError: If the model has no such parameters.
        """
        params = result.params if isinstance(result, EditResult) else result
        own = dict(self.model.named_parameters())
        unknown = [name for name in params if name not in own]
        if unknown:
            raise ValueError(
                f"The edit holds parameters that {type(self.model).__name__} does not have: {', '.join(unknown[:3])}. "
                "Apply it to the model that it was made for."
            )
        self._replaced.append({name: own[name].detach().clone() for name in params})
        try:
            self._put(params)
        except BaseException:  # half of the edit may be in place
            self.undo()
            raise

    def undo(self) -> None:
        """Takes the last edit back.

        Raises:
            IndexError: If no edit is left.
        """
        if not self._replaced:
            raise IndexError("There is no edit left to take back: the model is as it was.")
        self._put(self._replaced.pop())

    def _put(self, params: Mapping[str, Tensor]) -> None:
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in params.items():
                own[name].copy_(value)


@contextmanager
def edited(model: nn.Module, result: EditResult | Mapping[str, Tensor]) -> Iterator[nn.Module]:
    """Applies an edit for the duration of the block, then puts the old values back bit for bit.

    Args:
        model: The model that was edited.
        result: An [`EditResult`] or its `params`.

    Yields:
        The same model, so that `generate`, `evaluate` and everything else works on it unchanged.
    """
    stack = EditStack(model)
    stack.apply(result)
    try:
        yield model
    finally:
        stack.undo()
