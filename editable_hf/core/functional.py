"""A model as a function of its edited parameters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from editable_hf.core.replay import Recording, record
from editable_hf.seams.accelerate_seam import without_autocast_wrapper
from editable_hf.seams.torch_seam import ParameterSlots, eager

T = TypeVar("T")

_HALF = (torch.float16, torch.bfloat16)

# A request has the batch of all alternatives and a few pairs of target and binding alternative, and an edit may serve
# dozens of requests. The bound is for constraints that make new inputs at every call: their recordings would pile up.
_MAX_RECORDINGS = 256


class FunctionalModel:
    """Calls `model` with some parameters replaced, and runs only what the replaced ones change.

    The first call with given inputs is recorded; later calls with the same input objects start at the first module
    that uses a replaced parameter (see [`Recording`]).

    With `create_graph` the remaining parameters keep their graph, so that Eq. 2 can be differentiated with respect
    to all of theta; without it they are detached and autograd records the edited tensors alone.

    Args:
        model: The unwrapped module (not DDP). It is never changed.
        names: Qualified names of the parameters that will be replaced.
        create_graph: Whether gradient must reach the parameters that are not replaced.
        replay: Run only what the replaced parameters change. `False` runs the whole model at every call.
    """

    def __init__(self, model: nn.Module, names: list[str], create_graph: bool = False, replay: bool = True):
        self.model, self.create_graph, self._replay = model, create_graph, replay
        self._slots, parameters = ParameterSlots(model), dict(model.named_parameters())
        self._ids = {name: id(parameter) for name, parameter in parameters.items()}
        self._edited = {self._ids[name] for name in names}
        edited = set(names)
        # Those without gradient stay as they are: quantized weights have a class of their own, which others lack.
        others = {n: p for n, p in parameters.items() if p.requires_grad and n not in edited}
        self._frozen = {} if create_graph else {n: p.detach() for n, p in others.items()}
        self._recordings: OrderedDict[Hashable, tuple[Recording, dict[str, Tensor]]] = OrderedDict()
        self._kept: dict[Hashable, Any] = {}

    def __call__(self, params: Mapping[str, Tensor], **inputs: Any) -> Any:
        """The model's output for `inputs` with `params` in place of its own parameters.

        Raises:
            ReplayError: If the model cannot be replayed: it runs other modules than before, or an input changed.
        """
        everything = {**self._frozen, **params}
        if not self._replay:
            with self._slots.holding(everything):
                return self.model(**inputs)
        # What was recorded without graph must not answer where gradient is to reach the rest of the model.
        attached = self.create_graph and torch.is_grad_enabled()
        # The recording keeps the inputs, so that no other object can get their ids.
        key = (attached, *params, *((name, id(value)) for name, value in inputs.items()))
        if key in self._recordings:
            self._recordings.move_to_end(key)
            recording, frozen = self._recordings[key]
            return recording.replay({**frozen, **params})
        with record(self.model, params.values()) as recording, self._slots.holding(everything):
            output = self.model(**inputs)
        self._recordings[key] = (recording, self._still_used(recording))
        if len(self._recordings) > _MAX_RECORDINGS:
            self._recordings.popitem(last=False)
        return output

    def _still_used(self, recording: Recording) -> dict[str, Tensor]:
        """The detached parameters that a replay needs: putting in place all of a large model's costs like a layer."""
        cached = {id(parameter) for module in recording.cached for parameter in module.parameters()}
        return {name: value for name, value in self._frozen.items() if self._ids[name] not in cached}

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, kept under `key` for the duration of the edit: inputs that later calls should recognize."""
        if key not in self._kept:
            self._kept[key] = compute()
        return self._kept[key]

    def encode(self, params: Mapping[str, Tensor], **inputs: Tensor) -> Tensor:
        """Last hidden state of the encoder, `(batch, source_length, hidden)`.

        Computed once for the same input tensors as long as no replaced parameter belongs to the encoder (tied
        weights included).
        """
        encoder = self.model.get_encoder()
        if self.once("encoder is edited", lambda: any(id(weight) in self._edited for weight in encoder.parameters())):
            with self._slots.holding({**self._frozen, **params}):
                return self._states(encoder(**inputs))
        # With its graph also when the first caller scores without: later ones share this result and need it.
        with torch.set_grad_enabled(self.create_graph):
            key = ("encoded", *(id(value) for value in inputs.values()))
            return self.once(key, lambda: (self._states(encoder(**inputs)), inputs))[0]

    def _states(self, output: Any) -> Tensor:
        self._output_type = type(output)
        return output[0]

    def encoder_outputs(self, hidden: Tensor) -> Any:
        """`hidden` in the form in which the encoder returned what [`encode`] did: some decoders ask for its fields."""
        named = hasattr(self._output_type, "last_hidden_state")
        return self._output_type(last_hidden_state=hidden) if named else (hidden,)


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Runs the model's own Python code in the dtype of its parameters, whatever was put around the model.

    Steps of an edit are often smaller than the half precision of autocast can tell apart. What `torch.compile` made of
    the model or of a part of it has no second derivative, and would be compiled anew for each way an edit watches it.
    """
    with ExitStack() as stack:
        stack.enter_context(eager())
        stack.enter_context(without_autocast_wrapper(model))
        for device in {parameter.device.type for parameter in model.parameters()}:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def widened(tensor: Tensor) -> Tensor:
    """The tensor as float32 if it is in half precision, where sums lose what is small beside them."""
    return tensor.float() if tensor.dtype in _HALF else tensor


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module in eval mode and restores each one's own mode afterwards, also after an error.

    Edits run without dropout, and BatchNorm's running statistics would change even under `functional_call`.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    # NLLB-MoE's routers write the capacity of a batch in eval mode over the one that they were made to train with.
    routers = [(module, module.expert_capacity) for module in modules if "expert_capacity" in vars(module)]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module, capacity in routers:
            module.expert_capacity = capacity
