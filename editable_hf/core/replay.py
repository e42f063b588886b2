"""Running a model again from its first edited parameter on.

Everything that a model computes before it first uses an edited parameter is the same at every step of an edit. A
[`Recording`] watches one forward, keeps the outputs (with their graph) of the outermost modules that completed before
that moment, and lets them answer when the model runs again. No code of any model is needed for it: the moment is seen
as the first torch function that is given an edited tensor, so tied weights and parameters that a parent module uses
directly count too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Looking at these of an edited tensor does not depend on its values (T5 asks for the dtype of a weight, for example).
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point),
}
_PLAIN = (Tensor, bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)


class ReplayError(RuntimeError):
    """What was recorded does not fit what the model now does; record again, or run the whole model."""


class Recording:
    """One forward of a model up to its first use of a watched tensor, and everything after it as often as wanted.

    Use [`record`] to make one. The modules that answer are the outermost ones that completed before the moment. A
    call is left to run again, and its inner modules answer in its place, where an answer could be wrong: its output
    or its input was changed in place, it was given or gave something else than tensors and plain values (a cache,
    say), or it ran under another grad mode than the model (reentrant checkpointing).

    Args:
        model: The module that is called, unwrapped.
        watched: The tensors that will differ: the edited parameters as the model holds them when it is called.
        mixed_modes: Allow `replay` in another train/eval mode than the recording's. The answers then keep theirs.
    """

    def __init__(self, model: nn.Module, watched: Iterable[Tensor], mixed_modes: bool = False):
        self.model, self.mixed_modes = model, mixed_modes
        self._watched = list(watched)  # kept alive: an id is only unique while its object lives
        self._root = _Call(model)
        self._open: list[_Call] = []
        self._reached = False
        self.entries: list[tuple[nn.Module, Any]] = []
        self._stamps: list[tuple[Tensor, int]] = []
        self._modes: list[tuple[nn.Module, bool]] = []

    @property
    def answered(self) -> list[nn.Module]:
        """The modules that answer from the record, in the order of their calls."""
        return [module for module, output in self.entries if output is not _RUN]

    def _observe(self, module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        if self._reached:
            return forward(*args, **kwargs)
        if module is self.model:
            if self._open or self._root.inputs is not None:
                raise ReplayError(f"{type(module).__name__} was called twice while one forward was recorded.")
            call = self._root
            call.grad_enabled = torch.is_grad_enabled()
        elif not self._open:  # an inner module called by itself, outside the model's forward
            return forward(*args, **kwargs)
        else:
            call = _Call(module)
            self._open[-1].children.append(call)
        call.inputs = (args, kwargs)
        versions = _versions((args, kwargs))
        self._open.append(call)
        try:
            output = forward(*args, **kwargs)
        finally:
            self._open.pop()
        same_mode = torch.is_grad_enabled() == self._root.grad_enabled
        if not self._reached and same_mode and None not in versions and _versions(call.inputs) == versions:
            call.output, call.versions = output, _versions(output)
        return output

    def _used(self) -> None:
        if self._open:
            self._reached = True

    def _close(self) -> None:
        if self._root.inputs is None:
            raise ReplayError(f"{type(self.model).__name__} was not called while its forward was to be recorded.")
        self.entries = list(_cut(self._root.children))
        last = max((i for i, (_, output) in enumerate(self.entries) if output is not _RUN), default=-1)
        self.entries = self.entries[: last + 1]
        answers = [output for _, output in self.entries if output is not _RUN]
        tensors = [leaf for leaf in tree_leaves((self._root.inputs, answers)) if isinstance(leaf, Tensor)]
        weights = [t for module in set(self.answered) for t in (*module.parameters(), *module.buffers())]
        self._stamps = [(tensor, tensor._version) for tensor in (*tensors, *weights)]
        self._modes = [(module, module.training) for module in set(self.answered)]
        self._root.children.clear()

    def replay(self, params: Mapping[str, Tensor]) -> Any:
        """The model's output for the recorded inputs with `params` in place of its own parameters.

        The answers' graph is the recording's.

        Args:
            params: Parameters by qualified name, those that were watched at least.

        Raises:
            ReplayError: If inputs, weights, answers or modes changed since the recording, or if the model calls its
                modules in another order now.
        """
        self._check_unchanged()
        position = 0

        def answer(module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
            nonlocal position
            if position == len(self.entries):
                return forward(*args, **kwargs)
            expected, output = self.entries[position]
            if module is not expected:
                raise ReplayError(
                    f"{type(self.model).__name__} called its {type(module).__name__} where the recorded forward "
                    f"called {type(expected).__name__}: which modules it runs depends on chance or on its mode."
                )
            position += 1
            return forward(*args, **kwargs) if output is _RUN else output

        args, kwargs = self._root.inputs
        with intercepted({module for module, _ in self.entries}, answer):
            output = functional_call(self.model, dict(params), args, kwargs)
        if position < len(self.entries):
            raise ReplayError(
                f"{type(self.model).__name__} made {position} of the {len(self.entries)} recorded calls: which "
                "modules it runs depends on chance or on its mode."
            )
        return output

    def _check_unchanged(self) -> None:
        if any(tensor._version != version for tensor, version in self._stamps):
            raise ReplayError("An input, a weight or an answer was changed in place since the forward was recorded.")
        if not self.mixed_modes and any(module.training != training for module, training in self._modes):
            raise ReplayError("The model was switched between train and eval mode since the forward was recorded.")


@contextmanager
def record(
    model: nn.Module, watched: Iterable[Tensor], mixed_modes: bool = False, stop: bool = False
) -> Iterator[Recording]:
    """Records the one forward of `model` that runs within the block, wherever it is called from (DDP, accelerate).

    Args:
        model: The unwrapped module.
        watched: See [`Recording`].
        mixed_modes: See [`Recording`].
        stop: End the block at the first use of a watched tensor: what comes after is not computed.

    Raises:
        ReplayError: If the model is not called, or called twice.

    Example:
        >>> with record(model, [model.head.weight]) as recording:  # doctest: +SKIP
        ...     logits = model(**inputs).logits
        >>> recording.replay({"head.weight": edited_weight}).logits  # doctest: +SKIP
    """
    recording = Recording(model, watched, mixed_modes)
    with ExitStack() as stack:
        stack.enter_context(intercepted(model.modules(), recording._observe))
        stack.enter_context(_Watch(recording, stop))
        try:
            yield recording
        except _Stop as reached:
            if reached.recording is not recording:
                raise
    recording._close()


class _Stop(BaseException):  # no model's `except Exception` may catch it
    def __init__(self, recording: Recording):
        self.recording = recording


class _Watch(TorchFunctionMode):
    """Tells the recording when a torch function is first given a watched tensor."""

    def __init__(self, recording: Recording, stop: bool):
        super().__init__()
        self.recording, self.stop = recording, stop
        self.ids = {id(tensor) for tensor in recording._watched}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        recording = self.recording
        if recording._open and not recording._reached and func not in _METADATA:
            if self._given(args) or self._given(kwargs.values()):
                recording._used()
                if self.stop:
                    raise _Stop(recording)
        return func(*args, **kwargs)

    def _given(self, values: Iterable[Any]) -> bool:
        return any(
            self._given(value) if isinstance(value, tuple | list) else id(value) in self.ids for value in values
        )


class _Call:
    """One call of a module; `output` stays `_RUN` unless it may answer."""

    __slots__ = ("children", "grad_enabled", "inputs", "module", "output", "versions")

    def __init__(self, module: nn.Module):
        self.module, self.inputs, self.output = module, None, _RUN
        self.children: list[_Call] = []


_RUN = object()


def _cut(calls: list[_Call]) -> Iterator[tuple[nn.Module, Any]]:
    """The calls in order, without those inside one that answers."""
    for call in calls:
        # Versions again: a tensor may have been changed in place after its module returned it.
        if call.output is not _RUN and None not in call.versions and _versions(call.output) == call.versions:
            yield call.module, call.output
        else:
            yield call.module, _RUN
            yield from _cut(call.children)


def _versions(tree: Any) -> list[int | None]:
    """How often each tensor was changed in place; `None` for anything whose changes would not be seen."""
    return [_version(leaf) for leaf in tree_leaves(tree)]


def _version(leaf: Any) -> int | None:
    if isinstance(leaf, Tensor):
        return None if leaf.is_inference() else leaf._version
    return 0 if isinstance(leaf, _PLAIN) else None


@contextmanager
def intercepted(modules: Iterable[nn.Module], handle: Callable) -> Iterator[None]:
    """Calls `handle(module, forward, *args, **kwargs)` in place of each module's forward within the block."""
    originals: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            originals.append((module, vars(module).get("forward")))
            replaced = partial(handle, module, module.forward)
            replaced.__wrapped__ = module.forward  # for those that look at its signature
            vars(module)["forward"] = replaced
        yield
    finally:
        for module, forward in originals:
            if forward is None:
                vars(module).pop("forward", None)
            else:
                vars(module)["forward"] = forward
