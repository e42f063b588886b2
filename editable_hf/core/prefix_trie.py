"""Sequences that share prefixes, so that what depends on a prefix alone is computed once for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editable_hf.core.replay import intercepted


@dataclass(frozen=True)
class PrefixTrie:
    """The distinct prefixes of a batch of sequences.

    Attributes:
        shape: `(num_rows, length)` of the batch.
        positions: `(num_nodes,)`, for each distinct prefix the index of its last token in the flattened batch (of its
            first occurrence).
        node: `(num_rows, length)`, for each token the prefix that ends with it, an index into `positions`; anything
            where padded.
    """

    shape: tuple[int, int]
    positions: Tensor
    node: Tensor

    @classmethod
    def build(cls, prefixes: Tensor, mask: Tensor) -> PrefixTrie:
        """The trie of some decoder inputs.

        Args:
            prefixes: `(num_rows, length)`.
            mask: `(num_rows, length)`, which of them are real; padding comes last.
        """
        children: dict[tuple[int, int], int] = {}
        positions: list[int] = []
        nodes = []
        for row, (ids, num_real) in enumerate(zip(prefixes.tolist(), mask.sum(1).tolist(), strict=True)):
            node = -1
            for column, token in enumerate(ids[:num_real]):
                edge = (node, token)
                if edge not in children:
                    children[edge] = len(positions)
                    positions.append(row * len(ids) + column)
                node = children[edge]
                nodes.append(node)
            nodes += [max(node, 0)] * (len(ids) - num_real)
        device = prefixes.device
        return cls(
            tuple(prefixes.shape),
            torch.tensor(positions, device=device),
            torch.tensor(nodes, device=device).view(prefixes.shape),
        )

    @contextmanager
    def shared_by_rows(self, model: nn.Module) -> Iterator[None]:
        """Within the block the linear layers of `model` see each distinct prefix once.

        They are nearly all the work of a decoder, they treat every position alike, and causal attention gives the
        same input to positions with the same prefix. The output layer's result is not spread over the rows again:
        if the model calls one, logits are `(1, num_nodes, vocab)`. Encoder states that were expanded to the rows are
        projected once.

        Args:
            model: A Hugging Face encoder-decoder, to be called with the batch that the trie was built from. The
                encoder states must have another length than the batch: shapes tell them apart.
        """
        head = model.get_output_embeddings()

        def once(layer: nn.Module, forward: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if hidden.dim() != 3 or hidden.shape[0] != self.shape[0]:
                return forward(hidden, *args, **kwargs)
            if hidden.stride(0) == 0:
                return forward(hidden[:1], *args, **kwargs).expand(self.shape[0], -1, -1)
            if hidden.shape[1] != self.shape[1]:
                return forward(hidden, *args, **kwargs)
            output = forward(hidden.flatten(0, 1)[self.positions], *args, **kwargs)  # (num_nodes, features)
            return output.unsqueeze(0) if layer is head else output[self.node]

        with intercepted([module for module in model.modules() if isinstance(module, nn.Linear)], once):
            yield


@contextmanager
def head_from(model: nn.Module, start: int) -> Iterator[None]:
    """Within the block the output layer of `model` leaves out the first `start` positions, if it is a linear layer."""
    head = model.get_output_embeddings()

    def narrow(layer: nn.Module, forward: Callable, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return forward(hidden[:, start:] if hidden.dim() == 3 else hidden, *args, **kwargs)

    # Some models give one module for embedding and head; only a linear layer is surely the head.
    with intercepted([head] if isinstance(head, nn.Linear) else [], narrow):
        yield
