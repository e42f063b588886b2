"""Running a model again from its first edited parameter on.

Everything that a model computes before it first uses an edited parameter is the same at every step of an edit. A
[`Recording`] watches one forward and keeps the outputs (with their graph) of the outermost modules that completed
before that first use; when the model runs again, these modules return their cached outputs. No code of any model is
needed for it: the first use is the first torch function that is given an edited tensor, so tied weights and parameters
that a parent module uses directly count too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from editable_hf.seams.torch_seam import (
    ParameterSlots,
    has_hooks,
    intercepted,
    map_tensors,
    runs_before_forward,
    tree_leaves,
    unseen_by,
    version_of,
)

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

    Use [`record`] to make one. Cached are the outputs of the outermost modules that completed before the first use. A
    call is left to run again, with the cached outputs of its inner modules, where its own could be wrong: its output
    or its input was changed in place, it was given or gave something else than tensors and plain values (a key-value
    cache, say), it ran under another grad mode than the model (reentrant checkpointing), or it owns a watched tensor.
    A use is seen in modules that own a watched tensor, are given it or have hooks, not where a plain list hides it.

    Args:
        model: The module that is called, unwrapped.
        watched: The tensors that will differ: the edited parameters as the model holds them when it is called.
        mixed_modes: Allow `replay` in another train/eval mode than the recording's. Cached outputs then keep theirs.
    """

    def __init__(self, model: nn.Module, watched: Iterable[Tensor], mixed_modes: bool = False):
        self.model, self.mixed_modes = model, mixed_modes
        self._slots = ParameterSlots(model)
        self._watched = list(watched)  # kept alive: an id is only unique while its object lives
        self._devices = {tensor.device.type for tensor in self._watched}
        self._root = _Call(model)
        self._open: list[_Call] = []
        self._first_use_seen = self._autocast = False
        self.entries: list[tuple[nn.Module, Any]] = []
        self._before_hooks: tuple[tuple, dict[str, Any]] | None = None
        self._owners: set[nn.Module] = set()
        self._hooked: set[nn.Module] = set()
        self._versions: list[tuple[Any, int | None]] = []
        self._state: list[tuple[Callable[[], Any], Tensor, int | None]] = []
        self._modes: list[tuple[nn.Module, bool]] = []
        self._intercepted: list[nn.Module] = []

    @property
    def cached(self) -> list[nn.Module]:
        """The modules whose outputs are cached, in the order of their calls."""
        return [module for module, output in self.entries if output is not _RUN]

    def _observe(self, watch: _Watch, module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        if self._first_use_seen and module is not self.model:
            with unseen_by(watch):
                return forward(*args, **kwargs)
        if module is self.model:
            if self._open or self._root.inputs is not None:
                raise ReplayError(f"{type(module).__name__} was called twice while one forward was recorded.")
            call = self._root
            call.grad_enabled = torch.is_grad_enabled()
            self._owners = _around(module, lambda inner: any(id(t) in watch.ids for _, t in _own_tensors(inner)))
            self._hooked = _around(module, has_hooks)
        elif not self._open:  # an inner module called by itself, outside the model's forward
            return forward(*args, **kwargs)
        else:
            call = _Call(module)
            self._open[-1].children.append(call)
        # A replay goes through the model's own hooks again, so it needs what they were given.
        call.inputs = self._before_hooks if call is self._root and self._before_hooks else (args, kwargs)
        versions = call.versions = _versions(call.inputs)
        self._open.append(call)
        # What neither owns nor is given a watched tensor cannot use one, and each look at a torch function costs. What
        # hooks and objects of unknown kinds have in them is not seen here.
        may_use = module in self._owners or module in self._hooked
        may_use |= any(version is None or id(leaf) in watch.ids for leaf, version in versions)
        try:
            with nullcontext() if may_use else unseen_by(watch):
                output = forward(*args, **kwargs)
        finally:
            self._open.pop()
        if not self._first_use_seen and module in self._owners:
            # Its use was not seen (vmap, TorchScript, an extension), or it was not used this time (layerdrop).
            call.children.clear()
            self._first_use_seen = True
        self._autocast |= self._under_autocast()
        same_mode = torch.is_grad_enabled() == self._root.grad_enabled
        call.completed = not self._first_use_seen
        if call is not self._root and call.completed and same_mode and _unchanged(call.inputs, versions):
            if not any(child.hooked for child in call.children):
                call.output, call.versions = output, _versions(output)
        call.hooked = has_hooks(module) or any(c.hooked for c in call.children)
        return output

    def _called(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._root.inputs is None:
            self._before_hooks = (args, kwargs)

    def _used(self) -> None:
        if self._open:
            self._first_use_seen = True

    def _close(self) -> None:
        if self._root.inputs is None:
            raise ReplayError(f"{type(self.model).__name__} was not called while its forward was to be recorded.")
        calls = list(_cut(self._root.children))
        last = max((i for i, (_, output) in enumerate(calls) if output is not _RUN), default=-1)
        # The calls up to the one with the first use, so that a layer that was dropped before it is missed.
        end = next((i for i, (call, _) in enumerate(calls) if i > last and not call.completed), len(calls) - 1)
        self.entries = [(call.module, output) for call, output in calls[: end + 1]] if last >= 0 else []
        inside = {inner for module in self.cached for inner in module.modules()}
        self._state = [entry for module in inside for entry in _state(module)]
        tensors = [*self._root.versions, *(entry[1:] for entry in self._state)]
        if any(version is None and isinstance(leaf, Tensor) for leaf, version in tensors):  # changes go unseen
            self.entries, self._state, inside = [], [], set()
        self._modes = [(module, module.training) for module in inside]
        called = {module for module, _ in self.entries}
        self._intercepted = [m for m in self.model.modules() if m in called or m not in inside] if called else []
        self._versions = [*self._root.versions, *_versions(self._cached_outputs())]
        self._root.children.clear()

    def _cached_outputs(self) -> list[Any]:
        return [output for _, output in self.entries if output is not _RUN]

    def replay(self, params: Mapping[str, Tensor]) -> Any:
        """The model's output for the recorded inputs with `params` in place of its own parameters.

        Cached outputs have the recording's graph. Those that were computed under autocast come in the dtype of the
        watched tensors where there is none now.

        Args:
            params: Parameters by qualified name, those that were watched at least.

        Raises:
            ReplayError: If inputs, weights, cached outputs or modes changed since the recording, or if the model calls
                its modules in another order now.
        """
        self._check_unchanged()
        position, widen = 0, self._autocast and not self._under_autocast()

        def cached_or_run(module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
            nonlocal position
            if position == len(self.entries) or module is self.model:
                return forward(*args, **kwargs)
            expected, output = self.entries[position]
            if module is not expected:
                raise ReplayError(
                    f"{type(self.model).__name__} called its {type(module).__name__} where the recorded forward "
                    f"called {type(expected).__name__}: which modules it runs depends on chance or on its mode."
                )
            position += 1
            if output is _RUN:
                return forward(*args, **kwargs)
            return map_tensors(self._widened, output) if widen else output

        args, kwargs = self._root.inputs
        with intercepted(self._intercepted, cached_or_run):
            with self._slots.holding(params):
                output = self.model(*args, **kwargs)
        if position < len(self.entries):
            raise ReplayError(
                f"{type(self.model).__name__} made {position} of the {len(self.entries)} recorded calls: which "
                "modules it runs depends on chance or on its mode."
            )
        return output

    def _under_autocast(self) -> bool:
        return any(torch.is_autocast_enabled(device) for device in self._devices)

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._watched[0].dtype) if tensor.dtype in (torch.bfloat16, torch.float16) else tensor

    def _check_unchanged(self) -> None:
        state = all(get() is old and _version(old) == version for get, old, version in self._state)
        if not state or not _same(_versions((self._root.inputs, self._cached_outputs())), self._versions):
            raise ReplayError("An input, a weight or a cached output was changed since the forward was recorded.")
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
        watch = _Watch(recording, stop)
        stack.enter_context(intercepted(model.modules(), partial(recording._observe, watch)))
        hook = model.register_forward_pre_hook(recording._called, prepend=True, with_kwargs=True)
        stack.callback(hook.remove)
        stack.enter_context(watch)
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
        if recording._open and not recording._first_use_seen and func not in _METADATA:
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
    """One call of a module.

    `output` stays `_RUN` unless it may be cached; `completed` says whether that was before the first use, `hooked`
    whether this or an inner call has hooks. They would not run inside a module whose output is cached, and Hugging
    Face collects attention weights by hooks.
    """

    __slots__ = ("children", "completed", "grad_enabled", "hooked", "inputs", "module", "output", "versions")

    def __init__(self, module: nn.Module):
        self.module, self.inputs, self.output = module, None, _RUN
        self.completed = self.hooked = False
        self.children: list[_Call] = []


_RUN = object()


def _cut(calls: list[_Call]) -> Iterator[tuple[_Call, Any]]:
    """The calls in order, without those inside one whose output is cached."""
    for call in calls:
        # Versions again: a tensor may have been changed in place after its module returned it.
        if call.output is not _RUN and _unchanged(call.output, call.versions):
            yield call, call.output
        else:
            yield call, _RUN
            yield from _cut(call.children)


def _versions(tree: Any) -> list[tuple[Any, int | None]]:
    """The leaves and how often each was changed in place; `None` for anything whose changes would not be seen."""
    return [(leaf, _version(leaf)) for leaf in tree_leaves(tree)]


def _same(versions: list[tuple[Any, int | None]], earlier: list[tuple[Any, int | None]]) -> bool:
    # The leaves themselves too: a list or a dict may hold others than before.
    pairs = zip(versions, earlier, strict=False)
    return len(versions) == len(earlier) and all(new[0] is old[0] and new[1] == old[1] for new, old in pairs)


def _unchanged(tree: Any, versions: list[tuple[Any, int | None]]) -> bool:
    return all(version is not None for _, version in versions) and _same(_versions(tree), versions)


def _version(leaf: Any) -> int | None:
    if isinstance(leaf, Tensor):
        return version_of(leaf)
    return 0 if isinstance(leaf, _PLAIN) else None


def _state(module: nn.Module) -> Iterator[tuple[Callable[[], Any], Tensor, int | None]]:
    """The tensors that a module holds itself, as parameters, buffers or other attributes, each with what gets it."""
    for name, value in _own_tensors(module):
        yield partial(getattr, module, name, None), value, _version(value)
    if not runs_before_forward(module):  # that happens at a replay as well; `torch.nn.utils.weight_norm` does so
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                yield partial(vars(module).get, name), value, _version(value)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _around(module: nn.Module, condition: Callable[[nn.Module], bool]) -> set[nn.Module]:
    """The modules that meet the condition, and those around them."""
    chosen = set().union(*(_around(child, condition) for child in module.children()))
    if chosen or condition(module):
        chosen.add(module)
    return chosen
