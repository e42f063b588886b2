"""Edits in a row: the error rate after each of them (section 4.3.1 and the lower right of Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.editing import AnyEditor, EditStack, edit
from editable_hf.evaluation.edits import Request
from editable_hf.evaluation.error_edits import ErrorDrawdownEvaluator


class SequenceResult(NamedTuple):
    """Several runs of edits in a row.

    Attributes:
        error_rates: After 0, 1, ..., n edits, fractions, `(num_runs, 1 + num_edits)`, float64.
        successes: Whether each edit reached its goal when it was made, `(num_runs, num_edits)`.
        retained: Fraction of all edits so far whose image still gets the wanted class, `(num_runs, num_edits)`.
    """

    error_rates: Tensor
    successes: Tensor
    retained: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean error rate over the runs, `(1 + num_edits,)`."""
        return self.error_rates.mean(0)

    @property
    def deviation(self) -> Tensor:
        """Standard deviation over the runs, `(1 + num_edits,)`; 0 for a single run."""
        return self.error_rates.std(0, correction=min(1, len(self.error_rates) - 1))

    def summarize(self, name: str) -> dict[str, Any]:
        """A row of a table: error rate before and after all edits, what holds then, and the runs themselves."""
        return {
            "name": name,
            "before": self.mean[0].item(),
            "after": self.mean[-1].item(),
            "deviation": self.deviation[-1].item(),
            "success_rate": self.successes.double().mean().item(),
            "retained_at_the_end": self.retained[:, -1].mean().item(),
            "edits_in_a_row": self.successes.shape[1],
            "num_runs": len(self.successes),
            **{key: values.tolist() for key, values in self._asdict().items()},
        }


def evaluate_sequences(
    evaluator: ErrorDrawdownEvaluator,
    requests: Sequence[Request],
    editor: AnyEditor,
    *,
    num_edits: int,
    num_runs: int = 10,
    max_steps: int = 10,
    seed: int = 0,
    progress: str | None = "sequences",
) -> SequenceResult:
    """Edits the model again and again, each edit starting from the weights that the one before left.

    The model was never trained for this. After each run all edits are taken back, so that the weights are the
    original ones bit for bit.

    Args:
        evaluator: Holds the model and the test set.
        requests: Rows of an edit-request dataset; each run takes `num_edits` of them in an order of its own.
        editor: How to edit.
        num_edits: Edits in a row.
        num_runs: Repetitions, 10 in the paper.
        max_steps: k in Eq. 1, for each edit.
        seed: Decides which requests a run takes.
        progress: Title of the progress bar, none if `None`.

    Raises:
        ValueError: If there are fewer than `num_edits` requests, or nothing is asked for.
    """
    requests = list(requests)
    if not 1 <= num_edits <= len(requests) or num_runs < 1:
        raise ValueError(
            f"`num_edits` must be from 1 to the number of requests ({len(requests)}) and `num_runs` at least 1, got "
            f"{num_edits} and {num_runs}."
        )
    generator = torch.Generator().manual_seed(seed)
    runs = []
    for _ in tqdm(range(num_runs), desc=progress, disable=progress is None, unit="run"):
        order = torch.randperm(len(requests), generator=generator)[:num_edits].tolist()
        runs.append(_run(evaluator, [requests[index] for index in order], editor, max_steps))
    return SequenceResult(*(torch.stack(column) for column in zip(*runs, strict=True)))


def _run(
    evaluator: ErrorDrawdownEvaluator, requests: list[Request], editor: AnyEditor, max_steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    model, stack = evaluator.model, EditStack(evaluator.model)
    images = torch.cat([evaluator.request_inputs(request)["pixel_values"] for request in requests])
    targets = torch.tensor([request["target"] for request in requests])
    states, successes, retained = [], [], []
    try:
        for count, request in enumerate(requests, start=1):
            constraint = ClassConstraint({"pixel_values": images[count - 1 : count]}, request["target"])
            result = edit(model, constraint, editor, evaluator.layers, max_steps)
            stack.apply(result)
            states.append(result.params)
            successes.append(result.success)
            retained.append((evaluator.classify(images[:count]) == targets[:count]).double().mean())
    finally:
        while len(stack):
            stack.undo()
    # Every state is one set of parameters for the same layers, so all are measured like edits of the original model.
    size = evaluator.group_size
    groups = [evaluator.predict(states[start : start + size])[1:] for start in range(0, len(states), size)]
    error_rates = [evaluator.error_rate, *(evaluator.error_rate_of(each) for each in torch.cat(groups))]
    return torch.tensor(error_rates, dtype=torch.float64), torch.tensor(successes), torch.stack(retained)
