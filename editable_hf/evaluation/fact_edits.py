"""What edits of facts do: whether the model says the new answer, everywhere it should and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.constraints import IGNORE_INDEX
from editable_hf.core.continuations import Fact, target_batch
from editable_hf.core.editing import AnyEditor, EditResult, edit, edited
from editable_hf.core.functional import eval_mode
from editable_hf.core.selection import select_parameters
from editable_hf.data.continuations import check_decoder_only, continue_ids
from editable_hf.evaluation.edit_evaluator import EditEvaluator, EditRecord, Request, edit_record
from editable_hf.evaluation.held_out_text import HeldOutText, TextChange
from editable_hf.evaluation.verified_edit import joint_constraint, verified_edit

# Of a record, by what they answer. A request without paraphrases, neighbors or portability has `None` there.
MEASURES = ("reliability", "forced", "generality", "locality", "portability", "unrelated")


@dataclass(frozen=True)
class EditorFor:
    """Makes the editor for the requests of an edit, where it must know more of them than their constraint says."""

    make: Callable[[Sequence[Request]], AnyEditor]


class Question(NamedTuple):
    """A prompt and what counts as its answer, in token ids."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class FactEditEvaluator(EditEvaluator):
    """Measures edits of one decoder-only model that change what follows a prompt.

    An answer is right if free greedy decoding begins with it, token for token; it is kept if it begins as the unedited
    model's did. The records of `evaluate` have, beside what every record has, the shares (0 to 1)

    - `reliability`: the prompt's answer is the target (0 or 1), and `forced`: each of the target's tokens is the
      likeliest one after those before it, an easier test;
    - `generality`: of `paraphrases`, and `portability`: of the questions there, that are answered with what follows
      from the edit;
    - `locality`: of `neighbors`, and `unrelated`: of the unrelated questions, whose answers are kept;

    and of the held-out texts `kl`, `KL(before || after)` in nats a token, and the `perplexity` after. On a GPU they
    have the edit's peak memory, `peak_memory`, in bytes.

    Args:
        model: The model to edit; it is left as it was.
        tokenizer: Its tokenizer.
        texts: Held-out texts.
        layers: What an edit may move.
        unrelated: Questions, each with `prompt` and `answer`, that no edit is about.
        edits_at_once: Requests that one edit satisfies together; a group's records share what the edit did to texts.
        batch_size: Prompts decoded together.
        max_rounds: Rounds of [`verified_edit`] at most: an edit after which the model says something else is made anew
            with that as an alternative. For editors that go by the constraint; the time has the decoding in it.

    Raises:
        TypeError: If the model is not decoder-only.
        ValueError: If `layers` selects nothing, or there are no texts of two tokens.
    """

    request_keys = ("id", "source", "target")

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        *,
        layers: str | Iterable[str] = "last_decoder_mlp",
        unrelated: Sequence[Mapping[str, str]] = (),
        edits_at_once: int = 1,
        batch_size: int = 64,
        max_rounds: int = 1,
    ):
        check_decoder_only(model)
        self._max_rounds = max_rounds
        self.model, self.tokenizer, self.group_size, self._batch_size = model, tokenizer, edits_at_once, batch_size
        self.layers = list(select_parameters(model, layers))
        self.text = HeldOutText(model, tokenizer(list(texts), truncation=True)["input_ids"], self.layers)
        self._unrelated = self._questions(unrelated)
        self._before: dict[Question, list[int]] = {}

    def _measure(
        self, requests: Sequence[Request], editor: AnyEditor | EditorFor, max_steps: int, progress: str | None
    ) -> list[EditRecord]:
        result, seconds, memory = self.edit(requests, editor, max_steps)
        shared = {**self._change(result.params)._asdict(), **memory}
        with self.carrying(result.params):
            answers = self.answers(requests)
        return [
            {**edit_record(request, self.request_keys, result, seconds), **shared, **measures}
            for request, measures in zip(requests, answers, strict=True)
        ]

    def edit(
        self, requests: Sequence[Request], editor: AnyEditor | EditorFor, max_steps: int
    ) -> tuple[EditResult, float, dict[str, int]]:
        """One edit for all of the requests, the seconds that it took for each, and its peak memory on a GPU."""
        cuda = self.model.device.type == "cuda"
        if cuda:
            torch.cuda.reset_peak_memory_stats(self.model.device)
        start = time.perf_counter()
        made = editor.make(requests) if isinstance(editor, EditorFor) else editor
        if self._max_rounds > 1:
            how = {"max_steps": max_steps, "max_rounds": self._max_rounds}
            result = verified_edit(self.model, self.tokenizer, requests, made, self.layers, **how).result
        else:
            result = edit(self.model, joint_constraint(requests, self.model), made, self.layers, max_steps)
        seconds = (time.perf_counter() - start) / len(requests)
        return result, seconds, {"peak_memory": torch.cuda.max_memory_allocated(self.model.device)} if cuda else {}

    def carrying(self, params: Mapping[str, Tensor]) -> AbstractContextManager:
        """Within it the model is the edited one."""
        return edited(self.model, params)

    def _change(self, params: Mapping[str, Tensor]) -> TextChange:
        return self.text.change(params, within=lambda: self.carrying(params))

    def answers(self, requests: Sequence[Request]) -> list[dict[str, float | None]]:
        """What the model, as it stands, answers to all that is asked about each request: the shares of a record."""
        asked = [self._asked(request) for request in requests]
        self._remember(asked)
        now = self._decoded({question for each in asked for group in each.values() for question in group})
        forced = self._forced([each["reliability"][0] for each in asked])
        return [
            {**{key: self._share(key, questions, now) for key, questions in each.items()}, "forced": right}
            for each, right in zip(asked, forced, strict=True)
        ]

    def _share(self, key: str, questions: Sequence[Question], now: Mapping[Question, list[int]]) -> float | None:
        """Of the questions, those that are answered rightly, or as before."""
        kept = key in ("locality", "unrelated")
        if not questions:
            return None
        wanted = [self._before[each] if kept else each.answer for each in questions]
        pairs = zip(questions, wanted, strict=True)
        return fmean(now[each][: len(each.answer)] == list(answer)[: len(each.answer)] for each, answer in pairs)

    def _asked(self, request: Request) -> dict[str, list[Question]]:
        target = tuple(request["labels"])
        other_wordings = self.tokenizer(list(request["paraphrases"]))["input_ids"] if request["paraphrases"] else []
        return {
            "reliability": [Question(tuple(request["input_ids"]), target)],
            "generality": [Question(tuple(ids), target) for ids in other_wordings],
            "locality": self._questions(request["neighbors"]),
            "portability": self._questions(request["portability"]),
            "unrelated": self._unrelated,
        }

    def _questions(self, pairs: Sequence[Mapping[str, str]]) -> list[Question]:
        return [
            Question(
                tuple(self.tokenizer(pair["prompt"])["input_ids"]),
                tuple(self.tokenizer(pair["answer"], add_special_tokens=False)["input_ids"]),
            )
            for pair in pairs
            if pair["answer"]  # without one, nothing says how much of what follows is the answer
        ]

    def _remember(self, asked: Iterable[Mapping[str, list[Question]]]) -> None:
        """What the unedited model answers; asked of it before the first edit that is measured with a question."""
        questions = {question for each in asked for question in (*each["locality"], *each["unrelated"])}
        unknown = questions - self._before.keys()
        if unknown:
            with edited(self.model, self.text.unedited):
                self._before |= self._decoded(unknown)

    def _decoded(self, questions: Iterable[Question]) -> dict[Question, list[int]]:
        asked = sorted(questions)
        rows = continue_ids(
            self.model,
            [list(each.prompt) for each in asked],
            max_new_tokens=max(len(each.answer) for each in asked),
            batch_size=self._batch_size,
        )
        return dict(zip(asked, rows, strict=True))

    @torch.no_grad()
    def _forced(self, questions: Sequence[Question]) -> list[float]:
        right: list[float] = []
        for start in range(0, len(questions), self._batch_size):
            part = questions[start : start + self._batch_size]
            facts = [Fact(*(torch.tensor(ids, device=self.model.device) for ids in each)) for each in part]
            inputs, labels = target_batch(facts)
            with eval_mode(self.model):
                likeliest = self.model(**inputs, use_cache=False).logits.argmax(-1)[:, :-1]
            asked = labels[:, 1:] != IGNORE_INDEX
            right += (~asked | (likeliest == labels[:, 1:])).all(1).float().tolist()
        return right

    def summarize(self, name: str, records: Sequence[EditRecord], **extra: Any) -> dict[str, Any]:
        """One row of the table from the records of `evaluate`, with 95% bootstrap intervals over the edits.

        Returns:
            The mean of each measure of the class, of `kl`, and of `perplexity_drawdown`, the relative rise of the
            perplexity (0.01 is one percent); `success_rate`, `num_steps`, `edit_seconds`, `num_edits` and what every
            row has.
        """
        return self._summary(name, records, perplexity=self.text.perplexity, **extra)

    def _columns(self, records: Sequence[EditRecord]) -> dict[str, list[float]]:
        columns = {key: [record[key] for record in records if record[key] is not None] for key in MEASURES}
        columns["kl"] = [record["kl"] for record in records]
        columns["perplexity_drawdown"] = [record["perplexity"] / self.text.perplexity - 1 for record in records]
        if all("peak_memory" in record for record in records):
            columns["peak_memory"] = [record["peak_memory"] for record in records]
        return {key: column for key, column in columns.items() if column}

    def in_a_row(
        self,
        requests: Sequence[Request],
        editor: AnyEditor | EditorFor,
        checkpoints: Iterable[int],
        *,
        max_steps: int = 10,
        progress: str | None = "edits in a row",
    ) -> list[dict[str, Any]]:
        """Edits one after another, each of what the one before left, and measures after some of them.

        Args:
            requests: In their order.
            editor: How to edit.
            checkpoints: After how many edits to measure; those beyond the requests are left out.
            max_steps: k in Eq. 1.
            progress: Title of the progress bar, none if `None`.

        Returns:
            For each checkpoint `edits`, `success_rate` (edits that reached `l_e <= 0` when they were made), the mean
            of each measure over all edits so far, as they hold now, `kl`, `perplexity_drawdown`, `edit_seconds`.
        """
        wanted, rows, results, seconds = set(checkpoints), [], [], []
        params: dict[str, Tensor] = {}
        for number, request in enumerate(tqdm(requests, desc=progress, disable=progress is None), start=1):
            with edited(self.model, params):
                result, time_taken, _ = self.edit([request], editor, max_steps)
            params = result.params
            results.append(result.success)
            seconds.append(time_taken)
            if number in wanted:
                rows.append(self._now(requests[:number], params, results, seconds))
            if number >= max(wanted, default=0):
                break
        return rows

    def _now(
        self, requests: Sequence[Request], params: Mapping[str, Tensor], successes: list[bool], seconds: list[float]
    ) -> dict[str, Any]:
        with self.carrying(params):
            answers = self.answers(requests)
        change = self._change(params)
        columns = {key: [each[key] for each in answers if each[key] is not None] for key in MEASURES}
        return {
            "edits": len(requests),
            "success_rate": fmean(successes),
            **{key: fmean(column) for key, column in columns.items() if column},
            "kl": change.kl,
            "perplexity_drawdown": change.perplexity / self.text.perplexity - 1,
            "edit_seconds": fmean(seconds),
        }
