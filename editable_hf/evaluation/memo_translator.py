"""Translating the same sentences with many edits, exactly and fast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from editable_hf.core.editing import edited
from editable_hf.core.functional import eval_mode
from editable_hf.core.replay import intercepted
from editable_hf.core.selection import select_parameters
from editable_hf.evaluation.prefix_memo import FinishedSentences, MemoBeams, MemoStatistics, PrefixMemo
from editable_hf.evaluation.split_model import MemoUnavailable, Replicas, SplitModel, refusal
from editable_hf.evaluation.translator import Translator

_MAX_GROUP = 32  # a killed evaluation loses the edits of one group
_LARGEST_EPS = 1e-5  # half precision: what is computed in another order differs enough to change a translation


class MemoTranslator:
    """Translates a [`Translator`]'s sentences with each of several edits of its model.

    Token for token what `generate` gives on the edited model; in float32 two hypotheses whose scores tie may swap,
    because sums are rounded differently.

    Args:
        translator: The sentences, their batches and the beam size.
        layers: What the edits move.
        gigabytes: Memory of the memo. It is started again between two calls of `generate` when it has outgrown this,
            so one call more is the most it takes. A memo is for one batch of sentences: the size of the test set does
            not matter.
        edits_together: Edits that advance together in one call of `generate`. Many hide the latency of a GPU; on a CPU
            the scores of a step then no longer fit its caches.

    Attributes:
        statistics: [`MemoStatistics`] of all calls.
        group_size: Edits worth giving to one call: those whose parameters fit into `gigabytes`, at most 32.

    Raises:
        MemoUnavailable: If the model or the edit is of a kind that the memo does not serve.
        ValueError: If `gigabytes` or `edits_together` is not positive.
    """

    def __init__(
        self,
        translator: Translator,
        layers: str | Iterable[str],
        *,
        gigabytes: float = 2.0,
        edits_together: int = 2,
    ):
        if gigabytes <= 0 or edits_together < 1:
            raise ValueError(
                f"`gigabytes` must be above 0 and `edits_together` at least 1, got {gigabytes} and {edits_together}."
            )
        self.translator, self.model = translator, translator.model
        self.max_bytes, self.edits_together = int(gigabytes * 1e9), edits_together
        _check(self.model)
        self.split = SplitModel(self.model, select_parameters(self.model, layers))
        edit_bytes = sum(param.nbytes for param in select_parameters(self.model, self.split.names).values())
        self.group_size = min(max(1, int(gigabytes * 1e9) // edit_bytes), _MAX_GROUP)
        self.statistics = MemoStatistics()
        if translator.num_batches:
            self._try_out()

    @torch.no_grad()
    def __call__(self, edits: Sequence[Mapping[str, Tensor]], progress: str | None = None) -> list[list[str]]:
        """Translations after each edit, in the order of the sources.

        Args:
            edits: The edited parameters by qualified name, of each edit.
            progress: Title of a progress bar, none if not given.
        """
        total = self.translator.num_batches * len(edits)
        translations = []
        with tqdm(total=total, desc=progress, disable=progress is None, unit="batch", leave=False) as bar:
            for start in range(0, len(edits), self.group_size):
                translations += self._translate(edits[start : start + self.group_size], bar)
        return translations

    def _translate(self, edits: Sequence[Mapping[str, Tensor]], bar: tqdm) -> list[list[str]]:
        translations = [[""] * self.translator.num_sentences for _ in edits]
        chunks = [range(len(edits))[i : i + self.edits_together] for i in range(0, len(edits), self.edits_together)]
        replicas = [self.split.replicate([edits[i] for i in chunk]) for chunk in chunks]
        for number in range(self.translator.num_batches):
            memo = self.new_memo(number)
            for chunk, copies in zip(chunks, replicas, strict=True):
                if memo.num_bytes > self.max_bytes:
                    memo = self.new_memo(number)
                    self.statistics.drops += 1
                for edit, sequences in zip(chunk, self.generate(number, memo, copies, len(chunk)), strict=True):
                    for index, text in self.translator.decode(number, sequences):
                        translations[edit][index] = text
                bar.update(len(chunk))
        return translations

    def new_memo(self, number: int) -> PrefixMemo:
        """An empty memo for a batch of sentences."""
        return PrefixMemo(self.split, *self.translator.encode(number), self.statistics)

    def generate(self, number: int, memo: PrefixMemo, replicas: Replicas, num_edits: int) -> list[Tensor]:
        """`generate` on a batch of sentences with several edits, answered by the memo.

        Args:
            number: The batch.
            memo: The batch's memo.
            replicas: The edits' copies of the modules, from [`SplitModel.replicate`].
            num_edits: How many edits these are.

        Returns:
            Token ids for each edit, `(sentences, length)`.
        """
        hidden, mask = memo.hidden, memo.mask
        eos, num_beams = self.model.generation_config.eos_token_id, self.translator.num_beams
        finished = FinishedSentences(eos, num_edits * len(mask), num_beams, mask.device)
        beams = MemoBeams(memo, replicas, num_edits, finished, num_beams)

        def answer(module: nn.Module, forward: Callable, decoder_input_ids: Tensor, **kwargs: Any) -> Seq2SeqLMOutput:
            logits = beams.step(forward, decoder_input_ids[:, -1])
            return Seq2SeqLMOutput(logits=logits, past_key_values=beams)

        with eval_mode(self.model), intercepted([self.model], answer):
            sequences = self.translator.generate(
                number,
                # What the beams of a sentence share is looked up in the memo: `generate` gets, and repeats for each
                # beam, no more of it than the number of sentences.
                hidden=hidden[:, :1, :1].repeat(num_edits, 1, 1),
                mask=mask[:, :1].repeat(num_edits, 1),
                past_key_values=beams,
                stopping_criteria=[finished],
            )
        if num_edits > 1 and not beams.is_finite:
            # An edit that ruined the model: beam search takes NaN for a reason to stop, unless another edit goes on.
            alone = [{module: [copies[i]] for module, copies in replicas.items()} for i in range(num_edits)]
            return [self.generate(number, memo, own, 1)[0] for own in alone]
        return list(sequences.split(len(mask)))

    @torch.no_grad()
    def _try_out(self) -> None:
        """Compares three steps of two beams with the whole model."""
        hidden, mask = (tensor[:2] for tensor in self.translator.encode(0))
        mask = mask.clone()
        mask[-1, (mask.shape[1] + 1) // 2 :] = 0  # sources of a batch differ in length
        own = {name: param.detach() for name, param in select_parameters(self.model, self.split.names).items()}
        edits = [own, {name: _moved(param) for name, param in own.items()}]
        special = set(self.translator.tokenizer.all_special_ids)  # decoders may treat padding in another way
        ordinary = [token for token in range(len(special) + 3) if token not in special][:3]
        count = 2 * len(mask)  # beams of an edit
        tokens = torch.tensor([ordinary, ordinary[::-1]], device=mask.device).repeat(len(edits) * len(mask), 1)
        swapped = torch.arange(len(tokens), device=mask.device) ^ 1  # each beam goes on from the sentence's other one
        prefixes, expected = tokens[:, :0], []
        finished = FinishedSentences(None, len(edits) * len(mask), 2, mask.device)
        memo = PrefixMemo(self.split, hidden, mask, MemoStatistics())
        beams = MemoBeams(memo, self.split.replicate(edits), len(edits), finished, num_beams=2)
        inputs = {
            "encoder_outputs": BaseModelOutput(last_hidden_state=hidden.repeat_interleave(2, dim=0)),
            "attention_mask": mask.repeat_interleave(2, dim=0),
            "use_cache": False,
        }
        with refusal("its decoder cannot be run in two parts"), eval_mode(self.model):
            for column in tokens.T:
                beams.reorder_cache(swapped)
                prefixes = torch.cat([prefixes[swapped], column[:, None]], dim=1)
                logits = beams.step(self.model.forward, column)
            for params in edits:
                with edited(self.model, params):
                    output = self.model(**inputs, decoder_input_ids=prefixes[:count])
                expected.append(output.logits[:, -1:])
        expected = torch.cat(expected)
        difference = (expected - logits).abs().max() / expected.std()
        if not difference < torch.finfo(expected.dtype).eps ** 0.5:
            raise MemoUnavailable(f"its decoder gives something else in two parts (by {difference:.1e})")


def _check(model: PreTrainedModel) -> None:
    scale = model.generation_config.guidance_scale
    if scale not in (None, 1):
        raise MemoUnavailable(f"`guidance_scale={scale}` makes `generate` run the model twice for a token")
    if torch.finfo(model.dtype).eps > _LARGEST_EPS:
        raise MemoUnavailable(f"the model is in {model.dtype}, where rounding alone changes translations")


def _moved(param: Tensor) -> Tensor:
    """Another value of a parameter, also of one that is all zeros, and not only another scale or offset."""
    wave = torch.arange(param.numel(), device=param.device, dtype=param.dtype).sin().view(param.shape)
    return param + 0.05 * (param.abs().mean() + 0.1) * wave
