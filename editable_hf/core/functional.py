"""A model as a function of its edited parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class FunctionalModel:
    """Calls `model` with some parameters replaced, and shares what the replaced ones cannot change.

    With `create_graph` the remaining parameters keep their graph, so that Eq. 2 can be differentiated with respect
    to all of theta; without it they are detached and autograd records the edited tensors alone.

    Args:
        model: The unwrapped module (not DDP). It is never changed.
        names: Qualified names of the parameters that will be replaced.
        create_graph: Whether gradient must reach the parameters that are not replaced.
    """

    def __init__(self, model: nn.Module, names: list[str], create_graph: bool = False):
        self.model, self.create_graph = model, create_graph
        parameters = dict(model.named_parameters())
        self._edited = {id(parameters[name]) for name in names}
        edited = set(names)
        self._frozen = {} if create_graph else {n: p.detach() for n, p in parameters.items() if n not in edited}
        self._encoded: dict[tuple[int, ...], Any] = {}

    def __call__(self, params: Mapping[str, Tensor], **inputs: Any) -> Any:
        """The model's output for `inputs` with `params` in place of its own parameters."""
        return functional_call(self.model, {**self._frozen, **params}, (), inputs)

    def encode(self, params: Mapping[str, Tensor], **inputs: Tensor) -> Tensor:
        """Last hidden state of the encoder, `(batch, source_length, hidden)`.

        Computed once for the same input tensors as long as no replaced parameter belongs to the encoder (tied
        weights included).
        """
        encoder = self.model.get_encoder()
        weights = dict(encoder.named_parameters())
        if self._edited & {id(weight) for weight in weights.values()}:
            own = dict(self.model.named_parameters())
            replaced = {id(own[name]): value for name, value in {**self._frozen, **params}.items()}
            local = {name: replaced.get(id(weight), weight) for name, weight in weights.items()}
            return functional_call(encoder, local, (), inputs)[0]
        key = tuple(id(value) for value in inputs.values())
        if key not in self._encoded:
            # Also when the first caller scores without graph: later ones share this result and need its graph. The
            # inputs are kept beside it, because an id is only unique while its object lives.
            with torch.set_grad_enabled(self.create_graph):
                self._encoded[key] = (encoder(**inputs)[0], inputs)
        return self._encoded[key][0]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module in eval mode and restores each one's own mode afterwards, also after an error.

    Edits run without dropout, and BatchNorm's running statistics would change even under `functional_call`.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
