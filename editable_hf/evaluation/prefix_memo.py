"""What the decoder layers that no edit changes make of each target prefix, computed once for all edits.

The layers before the first edited one give the same state for the same sentence and target prefix in every edit. A
[`PrefixMemo`] keeps those states in a trie of the prefixes that any beam was on so far. `generate` itself runs
unchanged; [`MemoBeams`] answers its model calls from the memo, which computes new prefixes once for all edits that
meet them, and then runs the edited layers and the head for every beam. Sentences that have all their hypotheses are
not computed any further: beam search goes on with their rows until the last sentence of the batch is done, but cannot
use them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from editable_hf.evaluation.beam_pool import BeamPool
from editable_hf.evaluation.split_model import Replicas, Source, SplitModel

_SHRINK = 0.9  # rows of finished sentences are dropped from the caches when fewer than this share is alive


@dataclass
class MemoStatistics:
    """What a memo saved.

    Attributes:
        row_steps: Next-token predictions of live beams, over all edits.
        computed: How many of their prefixes were new, and went through the unedited layers.
        peak_nodes: Most prefixes held at once.
        peak_bytes: Memory of their states, keys and values.
        drops: How often the memo was started again because it had outgrown its limit.
    """

    row_steps: int = 0
    computed: int = 0
    peak_nodes: int = 0
    peak_bytes: int = 0
    drops: int = 0

    @property
    def hit_rate(self) -> float:
        """Fraction of `row_steps` answered from the memo."""
        return 1 - self.computed / self.row_steps if self.row_steps else 0.0

    def as_dict(self) -> dict[str, float]:
        return {"hit_rate": self.hit_rate, **asdict(self)}


class PrefixMemo:
    """A trie of target prefixes of a batch of sentences, with what the unedited decoder layers make of each.

    Args:
        split: The model, cut before its first edited layer.
        hidden: The encoder's output, `(sentences, source length, width)`.
        mask: The encoder's mask, `(sentences, source length)`.
        statistics: Is kept up to date.
    """

    def __init__(self, split: SplitModel, hidden: Tensor, mask: Tensor, statistics: MemoStatistics):
        self.split, self.hidden, self.mask, self.statistics = split, hidden, mask, statistics
        self._children: dict[int, int] = {}  # node of (parent, token)
        self._states = _Rows()  # what enters the edited part, (nodes, 1, width)
        self._keys_values = _Rows()  # self-attention of the layers before, (nodes, layers, 2, heads, head width)
        self.cross: list[tuple[Tensor, Tensor]] = []  # cross-attention of the same, for each sentence

    @property
    def num_bytes(self) -> int:
        """Memory of all states, keys and values; what Python needs for the trie itself is little beside them."""
        cross = sum(keys.nbytes + values.nbytes for keys, values in self.cross)
        return self._states.num_bytes + self._keys_values.num_bytes + cross

    def find(self, parents: Tensor | None, sentences: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes of prefixes, and which of them are new; [`add`] must be called for those.

        Args:
            parents: Node of each prefix without its last token, `(rows,)`; `None` for the first token.
            sentences: Their sentences, `(rows,)`.
            tokens: Their last tokens, `(rows,)`.

        Returns:
            Nodes, `(rows,)`, and the first row of each new one, in the order of the new nodes.
        """
        # The first len(mask) numbers are the roots, one for each sentence.
        starts = sentences if parents is None else parents + len(self.mask)
        children, nodes, new = self._children, [], []
        for row, key in enumerate(((starts << 32) + tokens).tolist()):
            node = children.get(key)
            if node is None:
                node = children[key] = self._states.size + len(new)
                new.append(row)
            nodes.append(node)
        self.statistics.row_steps += len(nodes)
        self.statistics.computed += len(new)
        return torch.tensor(nodes, device=tokens.device), torch.tensor(new, device=tokens.device, dtype=torch.long)

    def add(self, states: Tensor, keys_values: Tensor) -> None:
        """Appends nodes.

        Args:
            states: What enters the edited part, `(nodes, 1, width)`.
            keys_values: The unedited layers' self-attention, `(nodes, layers, 2, heads, head width)`.
        """
        self._states.append(states)
        self._keys_values.append(keys_values)
        self.statistics.peak_nodes = max(self.statistics.peak_nodes, self._states.size)
        self.statistics.peak_bytes = max(self.statistics.peak_bytes, self.num_bytes)

    def look_up(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """What [`add`] was given for nodes."""
        return self._states.values.index_select(0, nodes), self._keys_values.values.index_select(0, nodes)


class MemoBeams(BeamPool):
    """The beams of one `generate` call: where they are in the trie, and their keys and values in all layers.

    Rows are ordered by edit, then sentence, then beam; "sentence" below means a sentence of an edit.

    Args:
        memo: The trie.
        replicas: See [`SplitModel.replicate`].
        num_edits: How many edits they are for.
        finished: Which sentences need no more steps.
        num_beams: Beams of a sentence.

    Attributes:
        is_finite: Whether every row had a finite best score in every step so far, a tensor.
    """

    def __init__(
        self, memo: PrefixMemo, replicas: Replicas, num_edits: int, finished: FinishedSentences, num_beams: int
    ):
        num_sentences = num_edits * len(memo.mask)
        super().__init__(memo.split.num_layers, num_sentences, num_beams, like=memo.hidden)
        self.memo, self.replicas, self.num_edits, self.finished = memo, replicas, num_edits, finished
        self.is_finite = torch.ones((), dtype=torch.bool, device=memo.mask.device)
        self._kept = torch.arange(num_sentences, device=memo.mask.device)  # sentences that are still computed
        self._nodes: Tensor | None = None
        self._origins: Tensor | None = None
        self._logits: Tensor | None = None
        for layer, (keys, values) in enumerate(memo.cross):
            self.cross_attention_cache.update(
                keys.repeat(num_edits, 1, 1, 1), values.repeat(num_edits, 1, 1, 1), layer
            )
            self.is_updated[layer] = True

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._origins = beam_idx

    def step(self, forward: Callable, tokens: Tensor) -> Tensor:
        """Scores of the next token.

        Args:
            forward: The model's own forward.
            tokens: Last token of each beam, `(rows,)`.

        Returns:
            `(rows, 1, vocab)`; those of finished sentences mean nothing.

        Raises:
            RuntimeError: If all sentences were taken to be finished.
        """
        if self.length > 0:
            self._follow_beams()
        rows, memo = _rows(self._kept, self.num_beams), self.memo
        sentences = self._kept % len(memo.mask)
        hidden = memo.hidden[sentences] if self.length == 0 else memo.hidden
        source = Source(hidden, memo.mask[sentences])
        states = self._enter(forward, tokens[rows], sentences, source)
        shares = torch.bincount(self._kept // len(memo.mask), minlength=self.num_edits).tolist()
        logits = memo.split.run_edited(forward, tokens[rows], self, source, states, self.replicas, shares)
        self.advance()
        self.is_finite &= logits.amax(-1).float().isfinite().all()  # beam search is in float32
        if len(rows) == len(tokens):
            return logits
        if self._logits is None:
            self._logits = logits.new_zeros((len(tokens), *logits.shape[1:]))
        return self._logits.index_copy_(0, rows, logits)

    def _follow_beams(self) -> None:
        """Goes to where `generate` moved the beams, and drops sentences that are finished."""
        old, alive = self._kept, self.finished.alive[self._kept]
        if alive.sum() < _SHRINK * len(old):
            self._kept = old[alive]
            self.keep_sentences(alive.nonzero()[:, 0])
        elif self.num_beams == 1:
            return
        rows = _rows(self._kept, self.num_beams)
        origins = rows if self.num_beams == 1 else self._origins[rows].long()
        places = torch.empty_like(self.finished.ended)
        places[old] = torch.arange(len(old), device=old.device)
        source = places[origins // self.num_beams] * self.num_beams + origins % self.num_beams
        self._nodes = self._nodes[source]
        self.follow(source)

    def _enter(self, forward: Callable, tokens: Tensor, sentences: Tensor, source: Source) -> Tensor:
        """What enters the edited part for each row, from the memo or computed."""
        memo, layers = self.memo, range(self.memo.split.num_kept)
        sentences = sentences.repeat_interleave(self.num_beams)
        alive = self.finished.alive[self._kept].repeat_interleave(self.num_beams).nonzero()[:, 0]
        if not len(alive):
            raise RuntimeError(
                "`generate` asked for another token although every sentence has all its hypotheses: the prefix memo "
                "counted one that it did not accept. Please report this; meanwhile, translate without a memo."
            )
        parents = None if self._nodes is None else self._nodes[alive]
        nodes, new = memo.find(parents, sentences[alive], tokens[alive])
        if len(new):
            rows = alive[new]
            slots, width = _pack(rows // self.num_beams, len(self._kept))
            mask = self.mask(rows, slots, width)
            state = memo.split.run_kept(forward, tokens[rows], self, source, slots, width, mask)
            pairs = [torch.stack(self.appended(layer, width), dim=1)[slots] for layer in layers]
            if not memo.cross:
                cross, count = self.cross_attention_cache.layers[: len(layers)], len(memo.mask)
                memo.cross = [(layer.keys[:count].clone(), layer.values[:count].clone()) for layer in cross]
            memo.add(state, torch.stack(pairs, dim=1))
        self._nodes = torch.zeros_like(tokens)
        self._nodes[alive] = nodes
        states, keys_values = memo.look_up(self._nodes)
        for layer in layers:
            self.append(layer, keys_values[:, layer, 0], keys_values[:, layer, 1])
        return states


class FinishedSentences(StoppingCriteria):
    """Stops nothing, but counts the hypotheses that each sentence has completed.

    A hypothesis is complete if it is among the best `num_beams` continuations and ends: what beam search takes. With
    `early_stopping=True` nothing can change a sentence that has `num_beams` of them. Where few tokens are allowed,
    `generate` fills up the best with others of nearly no score, and may or may not accept those: the same hypothesis
    once more, from the copies of the first beam that it starts from, or one that ended earlier. They do not count. Too
    low a count is harmless: a sentence is then computed for longer than it need be.
    """

    def __init__(self, eos_token_id: int | list[int] | None, num_sentences: int, num_beams: int, device: torch.device):
        ends = [] if eos_token_id is None else [eos_token_id] if isinstance(eos_token_id, int) else eos_token_id
        self.num_beams = num_beams
        self._ends = torch.tensor(ends, dtype=torch.long, device=device)
        self.ended = torch.zeros(num_sentences, dtype=torch.long, device=device)

    @property
    def alive(self) -> Tensor:
        return self.ended < self.num_beams

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        best = input_ids.view(len(self.ended), -1, input_ids.shape[1])[:, : self.num_beams]
        ends = torch.isin(best, self._ends)  # (sentences, num_beams, length)
        ended_earlier = ends[..., 1:-1].any(-1)  # decoding itself may start from such a token
        repeated = (best[:, :, None] == best[:, None]).all(-1).tril(-1).any(-1)
        self.ended += (ends[..., -1] & ~ended_earlier & ~repeated).sum(1)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Rows:
    """Rows appended to one tensor that grows by half."""

    def __init__(self):
        self.size = 0
        self._buffer: Tensor | None = None

    @property
    def values(self) -> Tensor:
        return self._buffer[: self.size]

    @property
    def num_bytes(self) -> int:
        return 0 if self._buffer is None else self._buffer.nbytes

    def append(self, rows: Tensor) -> None:
        end = self.size + len(rows)
        if self._buffer is None:
            self._buffer = rows.new_empty((2 * end, *rows.shape[1:]))
        elif end > len(self._buffer):
            grown = rows.new_empty((max(end, len(self._buffer) * 3 // 2), *rows.shape[1:]))
            grown[: self.size] = self.values
            self._buffer = grown
        self._buffer[self.size : end] = rows
        self.size = end


def _pack(sentences: Tensor, num_sentences: int) -> tuple[Tensor, int]:
    """Places for rows, ordered by sentence, in `(num_sentences, width)`, and the width."""
    counts = torch.bincount(sentences, minlength=num_sentences)
    width = int(counts.max())
    first = counts.cumsum(0) - counts
    ranks = torch.arange(len(sentences), device=sentences.device) - first[sentences]
    return sentences * width + ranks, width


def _rows(sentences: Tensor, num_beams: int) -> Tensor:
    return (sentences[:, None] * num_beams + torch.arange(num_beams, device=sentences.device)).flatten()
