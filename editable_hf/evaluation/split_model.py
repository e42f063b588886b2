"""A translation model in two parts: the decoder layers that no edit changes, and the rest for many edits at once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from editable_hf.core.functional import eval_mode
from editable_hf.core.replay import intercepted, record
from editable_hf.core.selection import last_decoder_layer, select_parameters
from editable_hf.evaluation.beam_pool import BeamPool

_DENSE = 0.85  # with fewer of an attention's places taken, only those taken are projected

# They are of no use here, and a model's configuration may ask for them.
_NO_EXTRAS = {"output_attentions": False, "output_hidden_states": False}

Replicas = Mapping[nn.Module, Sequence[nn.Module]]


class MemoUnavailable(ValueError):
    """Why a model, or an edit of it, cannot be decoded from a prefix memo. `generate` can still decode it."""


@contextmanager
def refusal(reason: str) -> Iterator[None]:
    """Turns an error into [`MemoUnavailable`]: a model built in a way that nobody thought of may fail anywhere."""
    try:
        yield
    except MemoUnavailable:
        raise
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise MemoUnavailable(f"{reason} ({error})") from error


class SplitModel:
    """The decoder cut before its first edited layer.

    Args:
        model: An encoder-decoder of the BART family: decoder layers that take and give a hidden state, with one
            self-attention and one cross-attention each.
        names: Qualified names of the edited parameters.

    Attributes:
        num_kept: Decoder layers before the first one that an edit changes.
        num_layers: All decoder layers.

    Raises:
        MemoUnavailable: If the decoder cannot be cut, or nothing comes before the cut.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str]):
        self.model, self.names = model, list(names)
        self._layers = list(model.get_submodule(last_decoder_layer(model).rpartition(".")[0]))
        self.num_layers = len(self._layers)
        params = select_parameters(model, self.names)
        self.owners = _owners(model, params)
        with refusal("what its decoder does cannot be observed"):
            completed, outputs, attentions = self._observe(params)
        self.num_kept = next((i for i, layer in enumerate(self._layers) if layer not in completed), self.num_layers)
        if self.num_kept == 0:
            raise MemoUnavailable("the edit changes the encoder, the embeddings or the first decoder layer")
        if not all(isinstance(outputs.get(layer), Tensor) for layer in self._layers):
            raise MemoUnavailable("its decoder layers pass on more than one hidden state")
        self._attentions = [tuple(m for m in attentions if m in set(layer.modules())) for layer in self._layers]
        if not all(len(modules) == 2 for modules in self._attentions):
            raise MemoUnavailable("its decoder layers have no self-attention and cross-attention of the usual kind")

    def _observe(self, params: Mapping[str, Tensor]) -> tuple[set[nn.Module], dict[nn.Module, Any], list[nn.Module]]:
        """Modules that complete before an edited tensor is used, what decoder layers give, and their attentions."""
        outputs, attentions = {}, []

        def note(module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
            if module not in self._layers and kwargs.keys() >= {"past_key_values", "attention_mask"}:
                attentions.append(module)
            outputs[module] = forward(*args, **kwargs)
            return outputs[module]

        one = torch.ones((1, 1), dtype=torch.long, device=self.model.device)
        inputs = {"input_ids": one, "attention_mask": one, "decoder_input_ids": one, "use_cache": False, **_NO_EXTRAS}
        with torch.no_grad(), eval_mode(self.model):
            with intercepted(self.model.modules(), note), record(self.model, params.values(), stop=True):
                self.model(**inputs)
            completed = set(takewhile(lambda module: module not in self.owners, outputs))
            outputs.clear()
            attentions.clear()
            with intercepted([m for layer in self._layers for m in layer.modules()], note):
                self.model(**inputs)
        return completed, outputs, attentions

    def replicate(self, edits: Sequence[Mapping[str, Tensor]]) -> Replicas:
        """For each module that holds edited parameters, one copy for each edit that holds that edit's."""
        replicas = {}
        for module, names in self.owners.items():
            replicas[module] = [copy.deepcopy(module).eval() for _ in edits]
            for replica, params in zip(replicas[module], edits, strict=True):
                for own, name in names.items():
                    setattr(replica, own, nn.Parameter(params[name], requires_grad=False))
        return replicas

    def run_kept(
        self,
        forward: Callable,
        tokens: Tensor,
        pool: BeamPool,
        source: Source,
        slots: Tensor,
        width: int,
        mask: Tensor,
    ) -> Tensor:
        """One step of the layers that no edit changes, for some of the beams.

        Args:
            forward: The model's own forward.
            tokens: Last token of each beam, `(beams,)`.
            pool: Their keys and values, which the step extends.
            source: What the encoder made of each sentence of the pool.
            slots: Places of the beams among the `sentences * width` of an attention, `(beams,)`.
            width: Places for each sentence.
            mask: Self-attention's mask, `(sentences, 1, width, keys)`.

        Returns:
            The hidden state that enters the edited part, `(beams, 1, width of the model)`.
        """
        sentences = len(source.mask)

        def fold(hidden_states: Tensor) -> Tensor:
            folded = hidden_states.new_zeros((sentences * width, hidden_states.shape[-1]))
            return folded.index_copy_(0, slots, hidden_states[:, 0]).view(sentences, width, -1)

        def unfold(output: Tensor) -> Tensor:
            return output.flatten(0, 1).index_select(0, slots)[:, None]

        def project(module: nn.Module, linear_forward: Callable, inputs: Tensor) -> Tensor:
            output = linear_forward(inputs.flatten(0, 1).index_select(0, slots))
            filled = output.new_zeros((sentences * width, output.shape[-1]))
            return filled.index_copy_(0, slots, output).view(sentences, width, -1)

        def stop(module: nn.Module, layer_forward: Callable, *args: Any, **kwargs: Any) -> None:
            raise _Reached(layer_forward(*args, **kwargs))

        attend = _attend(fold, unfold, source, mask)
        handlers = {module: attend for pair in self._attentions[: self.num_kept] for module in pair}
        # In the first step, keys and values of the whole source are projected too; there are no empty places then.
        if pool.length > 0 and len(slots) < _DENSE * sentences * width:
            inner = [module for attention in handlers for module in attention.modules()]
            handlers |= {module: project for module in inner if isinstance(module, nn.Linear)}
        handlers[self._layers[self.num_kept - 1]] = stop
        try:
            _decode(forward, tokens, pool, source, handlers)
        except _Reached as reached:
            return reached.state
        raise AssertionError("the model did not call its decoder layers")

    def run_edited(
        self,
        forward: Callable,
        tokens: Tensor,
        pool: BeamPool,
        source: Source,
        state: Tensor,
        replicas: Replicas,
        shares: Sequence[int],
    ) -> Tensor:
        """One step of everything from the first edited layer on, for all beams of all edits at once.

        Beams are ordered by edit, then sentence. Modules without edited parameters run once over all of them; those
        with edited ones have a copy for each edit, which gets the edit's share.

        Args:
            forward: The model's own forward.
            tokens: Last token of each beam, `(beams,)`.
            pool: Their keys and values, which the step extends.
            source: What the encoder made of each sentence of the pool.
            state: What [`run_kept`] gives for the beams.
            replicas: See [`replicate`].
            shares: Number of sentences of each edit.

        Returns:
            Scores of the next token, `(beams, 1, vocab)`.
        """
        sentences = len(source.mask)

        def fold(hidden_states: Tensor) -> Tensor:
            return hidden_states.reshape(sentences, pool.num_beams, -1)

        def unfold(output: Tensor) -> Tensor:
            return output.reshape(len(tokens), 1, -1)

        def pass_on(module: nn.Module, _: Callable, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return state  # of the last of these layers; what the others give is not used

        def share(module: nn.Module, _: Callable, inputs: Tensor) -> Tensor:
            if len(shares) == 1:
                return replicas[module][0](inputs)
            parts = inputs.split([count * (len(inputs) // sentences) for count in shares])
            return torch.cat([replica(part) for replica, part in zip(replicas[module], parts, strict=True)])

        attend = _attend(fold, unfold, source, pool.mask())
        handlers = {module: attend for pair in self._attentions[self.num_kept :] for module in pair}
        handlers |= dict.fromkeys(self._layers[: self.num_kept], pass_on) | dict.fromkeys(self.owners, share)
        return _decode(forward, tokens, pool, source, handlers).logits


class Source(NamedTuple):
    """What the encoder made of each sentence: `hidden` `(sentences, length, width)`, `mask` `(sentences, length)`.

    `hidden` is only read in the first step: later the cache has the cross-attention's keys and values.
    """

    hidden: Tensor
    mask: Tensor


class _Reached(BaseException):  # no model's `except Exception` may catch it
    def __init__(self, state: Tensor):
        self.state = state


def _attend(fold: Callable, unfold: Callable, source: Source, mask: Tensor) -> Callable:
    """An attention whose queries are the beams of a sentence, so that they share its keys and values."""
    hidden = source.hidden
    source_mask = (source.mask[:, None, None] == 0).to(hidden.dtype) * torch.finfo(hidden.dtype).min

    def attend(module: nn.Module, forward: Callable, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        if kwargs.get("key_value_states") is None:
            kwargs["attention_mask"] = mask
        else:
            kwargs |= {"key_value_states": hidden, "attention_mask": source_mask}
        output, weights = forward(fold(hidden_states), **kwargs)
        return unfold(output), weights

    return attend


def _decode(forward: Callable, tokens: Tensor, cache: Cache, source: Source, handlers: Mapping[nn.Module, Callable]):
    """One step of the decoder in which some modules' calls are handled."""
    with intercepted(handlers, lambda module, *args, **kwargs: handlers[module](module, *args, **kwargs)):
        return forward(
            # Only tells the decoder that there is a source: the attentions are given theirs.
            encoder_outputs=BaseModelOutput(last_hidden_state=source.hidden[:1, :1].expand(len(tokens), -1, -1)),
            decoder_input_ids=tokens[:, None],
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
            **_NO_EXTRAS,
        )


def _owners(model: nn.Module, params: Mapping[str, Tensor]) -> dict[nn.Module, dict[str, str]]:
    """The modules that hold edited parameters: `{module: {own name: qualified name}}`."""
    names = {id(param): name for name, param in params.items()}
    owners: dict[nn.Module, dict[str, str]] = {}
    for module in model.modules():
        own = {key: names[id(p)] for key, p in module.named_parameters(recurse=False) if id(p) in names}
        if own and next(module.children(), None) is not None:
            raise MemoUnavailable(f"{type(module).__name__} holds edited parameters beside other modules")
        if own:
            owners[module] = own
    return owners
