"""A key-value cache in which the beams of a sentence share one growing pool."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicLayer

_PRUNE_STEPS = 8


class BeamPool(EncoderDecoderCache):
    """Keys and values of the beams of each sentence, one after the other; nothing is copied when beams change places.

    The stock cache has a row for each beam, copies all of it when a beam goes on from another one, and once more to
    append a step. Here a sentence is one row, its beams are that row's queries, and a mask tells each beam which of
    the row's keys are its own past. Each step takes `num_beams` slots of the pool.

    Args:
        num_layers: Decoder layers.
        num_sentences: Rows.
        num_beams: Slots a step.
        like: A tensor whose dtype and device the mask gets.

    Attributes:
        length: Steps taken.
    """

    def __init__(self, num_layers: int, num_sentences: int, num_beams: int, like: Tensor):
        super().__init__(Cache(layers=[_PoolLayer() for _ in range(num_layers)]), DynamicCache())
        self.num_beams, self.length = num_beams, 0
        self._own = like.new_full((num_beams, num_beams), torch.finfo(like.dtype).min).fill_diagonal_(0)
        self._past = like.new_empty((num_sentences * num_beams, 0))  # added to attention scores: 0 or the least number

    def advance(self) -> None:
        """Ends a step: what is appended from now on belongs to the next one."""
        self._past = torch.cat([self._past, self._own.repeat(len(self._past) // self.num_beams, 1)], dim=1)
        self.length += 1
        if self.length % _PRUNE_STEPS == 0:
            self._prune()
        for layer in self.self_attention_cache.layers:
            layer.length, layer.num_slots = self.length, self._past.shape[1]

    def _prune(self) -> None:
        """Drops slots that no beam descends from: beams of a sentence mostly differ in their last few tokens."""
        past = self._past.unflatten(0, (-1, self.num_beams))  # (sentences, num_beams, slots)
        used = (past == 0).any(dim=1)
        count = int(used.sum(dim=1).max())
        order = used.byte().argsort(dim=1, descending=True, stable=True)
        self._past = past.gather(2, order[:, None, :count].expand(-1, self.num_beams, -1)).flatten(0, 1)
        for layer in self.self_attention_cache.layers:
            layer.take(order[:, : count + _PRUNE_STEPS * self.num_beams])  # the others are room for what comes

    def follow(self, source: Tensor) -> None:
        """Beam `i` goes on from what beam `source[i]` was, `(sentences * num_beams,)`."""
        self._past = self._past.index_select(0, source)

    def keep_sentences(self, places: Tensor) -> None:
        for layer in (*self.self_attention_cache.layers, *self.cross_attention_cache.layers):
            layer.batch_select_indices(places)

    def mask(self, beams: Tensor | None = None, slots: Tensor | None = None, width: int = 0) -> Tensor:
        """What each beam may look at in this step: its past and itself.

        Args:
            beams: The beams that take part, all if not given, `(beams,)`.
            slots: Their places among the `sentences * width` that keys are computed for, `(beams,)`.
            width: Places for each sentence.

        Returns:
            `(sentences, 1, num_beams or width, keys)`
        """
        num_sentences = len(self._past) // self.num_beams
        past, width = self._past, width or self.num_beams
        if beams is not None:
            past = past.new_zeros((num_sentences * width, past.shape[1]))
            past.index_copy_(0, slots, self._past.index_select(0, beams))
        own = self._own[:width, :width].repeat(num_sentences, 1)
        return torch.cat([past, own], dim=1).view(num_sentences, 1, width, -1)

    def appended(self, layer: int, width: int) -> tuple[Tensor, Tensor]:
        """Keys and values that a layer got in this step, `(sentences * width, heads, head width)` each."""
        keys, values = self.self_attention_cache.layers[layer].step(width)
        return keys.transpose(1, 2).flatten(0, 1), values.transpose(1, 2).flatten(0, 1)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Sets a layer's keys and values of this step, `(sentences * num_beams, heads, head width)` each."""
        states = (x.unflatten(0, (-1, self.num_beams)).transpose(1, 2) for x in (keys, values))
        self.self_attention_cache.layers[layer].update(*states)


class _PoolLayer(DynamicLayer):
    def __init__(self):
        super().__init__()
        self.length = self.num_slots = 0
        self._buffers: list[Tensor] = []  # keys and values, (sentences, heads, room, head width)

    def get_seq_length(self) -> int:
        return self.length  # of a layer that was never run too: decoders take the position from the first one

    def step(self, width: int) -> list[Tensor]:
        """Where the keys and the values of this step are, `(sentences, heads, width, head width)`."""
        return [buffer.narrow(2, self.num_slots, width) for buffer in self._buffers]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        states, width = (key_states, value_states), key_states.shape[2]
        if not self._buffers:
            self._buffers = [x.new_empty((*x.shape[:2], 0, x.shape[3])) for x in states]
        if self._buffers[0].shape[2] < self.num_slots + width:
            room = [x.new_empty((*x.shape[:2], _PRUNE_STEPS * width, x.shape[3])) for x in states]
            self._buffers = [torch.cat(pair, dim=2) for pair in zip(self._buffers, room, strict=True)]
        for place, new in zip(self.step(width), states, strict=True):
            place.copy_(new)
        keys, values = (buffer.narrow(2, 0, self.num_slots + width) for buffer in self._buffers)
        return keys, values

    def take(self, slots: Tensor) -> None:
        """Keeps some slots of each sentence, `(sentences, slots)`, in this order."""
        for number, buffer in enumerate(self._buffers):
            sentences, heads, room, width = buffer.shape
            rows = torch.arange(sentences * heads, device=slots.device).view(sentences, heads, 1) * room
            taken = buffer.view(-1, width).index_select(0, (rows + slots[:, None]).flatten())
            self._buffers[number] = taken.view(sentences, heads, -1, width)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._buffers = [buffer.index_select(0, indices) for buffer in self._buffers]
