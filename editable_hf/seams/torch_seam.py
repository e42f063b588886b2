"""How torch is built inside, as far as edits and counting kernels depend on it. Imports torch alone, for `core`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn, overrides
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


def tree_leaves(tree: Any) -> list[Any]:
    """The values in nested lists, tuples, dicts and model outputs.

    Relies on `torch.utils._pytree.tree_leaves`, where transformers registers its outputs (torch 2.9 to 2.14).
    """
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) is tuple or type(tree) is dict:  # nearly all that modules are given, and ten times as fast as below
        values = tree if type(tree) is tuple else tree.values()
        return [leaf for value in values for leaf in tree_leaves(value)]
    return _pytree.tree_leaves(tree)


def map_tensors(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same nested values with every tensor changed.

    Relies on `torch.utils._pytree.tree_map_only` (torch 2.9 to 2.14).
    """
    return _pytree.tree_map_only(Tensor, change, tree)


def version_of(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; `None` if torch does not count its changes.

    Relies on `torch.Tensor._version` (torch 2.9 to 2.14).
    """
    return None if tensor.is_inference() else tensor._version


def runs_before_forward(module: nn.Module) -> bool:
    """Whether something was registered to run before the module's forward.

    Relies on `torch.nn.Module._forward_pre_hooks` (torch 2.9 to 2.14); nothing public lists them.
    """
    return bool(module._forward_pre_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether something was registered to run before or after the module's forward.

    Relies on `torch.nn.Module._forward_hooks` and `torch.nn.Module._forward_pre_hooks` (torch 2.9 to 2.14).
    """
    return bool(module._forward_hooks) or runs_before_forward(module)


def eager() -> AbstractContextManager[None]:
    """What `torch.compile` made runs as it was written, within the block.

    Relies on `torch._dynamo` being imported by the first `torch.compile` (torch 2.9 to 2.14): importing it takes two
    seconds, in vain where nothing is compiled.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given, with the same parameters under their own names; any other as it is.

    Relies on the attribute `_orig_mod` of what `torch.compile` returns (torch 2.9 to 2.14).
    """
    return vars(model).get("_modules", {}).get("_orig_mod", model)


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` made the model, or its `forward`, or the model was compiled in place.

    Relies on the attribute `_orig_mod` of what `torch.compile` returns for a module and `_torchdynamo_orig_callable`
    for a function, and on `torch.nn.Module._compiled_call_impl` (torch 2.9 to 2.14).
    """
    in_place = getattr(model, "_compiled_call_impl", None) is not None
    forward = vars(model).get("forward")
    return uncompiled(model) is not model or in_place or hasattr(forward, "_torchdynamo_orig_callable")


@contextmanager
def intercepted(modules: Iterable[nn.Module], handle: Callable) -> Iterator[None]:
    """Calls `handle(module, forward, *args, **kwargs)` in place of each module's forward within the block.

    Relies on `torch.nn.Module.forward` being looked up on the module itself by `torch.nn.Module.__call__` (torch 2.9
    to 2.14): a hook can see a call or change what it returns, but cannot keep it from running.
    """
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


@contextmanager
def unseen_by(mode: TorchFunctionMode) -> Iterator[None]:
    """Within the block the innermost mode sees no calls, if it is this one.

    Relies on `torch.overrides._get_current_function_mode` and `torch.overrides._pop_mode_temporarily` (torch 2.9 to
    2.14).
    """
    innermost = overrides._get_current_function_mode() is mode
    with overrides._pop_mode_temporarily() if innermost else nullcontext():
        yield


class ParameterSlots:
    """Where a module holds its parameters, so that other tensors can take their place again and again.

    `torch.func.functional_call` does the same and walks through all modules at every call, which costs as much time as
    a decoder layer. Relies on `torch.nn.Module._parameters` (torch 2.9 to 2.14): nothing public puts a plain tensor
    there.

    Args:
        module: Its tied parameters are replaced wherever they are held.
    """

    def __init__(self, module: nn.Module):
        held: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for inner in module.modules():
            for key, parameter in inner._parameters.items():
                if parameter is not None:
                    held.setdefault(id(parameter), []).append((inner._parameters, key))
        every = module.named_parameters(remove_duplicate=False)
        self._slots = {name: held[id(parameter)] for name, parameter in every}

    @contextmanager
    def holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block the module has `tensors`, by qualified name, in place of its own parameters."""
        replaced: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name, tensor in tensors.items():
                for holder, key in self._slots[name]:
                    replaced.append((holder, key, holder[key]))
                    holder[key] = tensor
            yield
        finally:
            for holder, key, own in reversed(replaced):
                holder[key] = own


class KernelCount(TorchDispatchMode):
    """Counts operations while it is entered, those of backward passes too; views, which launch nothing, are left out.

    Relies on `torch.utils._python_dispatch` and on the overload `aten._unsafe_view` (torch 2.9 to 2.14).

    Attributes:
        count: How many so far.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.count += not (func.is_view or func is torch.ops.aten._unsafe_view.default)
        return func(*args, **(kwargs or {}))
