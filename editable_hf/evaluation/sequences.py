"""Edits in a row: the error rate after each of them (section 4.3.1 and the lower right of Table 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.editing import AnyEditor, EditStack, edit
from editable_hf.evaluation.edit_evaluator import Request
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.evaluation.records import measured


def evaluate_sequences(
    evaluator: ErrorDrawdownEvaluator,
    requests: Sequence[Request],
    editor: AnyEditor,
    *,
    num_edits: int,
    num_runs: int = 10,
    max_steps: int = 10,
    seed: int = 0,
    path: Path | None = None,
    progress: str | None = "sequences",
) -> list[dict[str, Any]]:
    """Edits the model again and again, each edit starting from the weights that the one before left.

    The model was never trained for this. After each run all edits are taken back, so that the weights are the
    original ones bit for bit. Several processes share the runs; all of them must call this, and get all.

    Args:
        evaluator: Holds the model and the test set.
        requests: Rows of an edit-request dataset; each run takes `num_edits` of them in an order of its own.
        editor: How to edit.
        num_edits: Edits in a row.
        num_runs: Repetitions, 10 in the paper.
        max_steps: k in Eq. 1, for each edit.
        seed: Decides which requests the runs take, the first one this seed, the next one the next.
        path: See [`measured`].
        progress: Title of the progress bar, none if `None`.

    Returns:
        For each run `error_rates` after 0, 1, ..., n edits, fractions; `successes`, whether each edit reached its goal
        when it was made; and `retained`, the fraction of all edits so far whose image still gets the wanted class.

    Raises:
        ValueError: If there are fewer than `num_edits` requests, or nothing is asked for.
    """
    requests = list(requests)
    if not 1 <= num_edits <= len(requests) or num_runs < 1:
        raise ValueError(
            f"`num_edits` must be from 1 to the number of requests ({len(requests)}) and `num_runs` at least 1, got "
            f"{num_edits} and {num_runs}."
        )

    def measure(seeds: Sequence[int]) -> list[dict[str, Any]]:
        orders = [torch.randperm(len(requests), generator=torch.Generator().manual_seed(start)) for start in seeds]
        chosen = [[requests[index] for index in order[:num_edits].tolist()] for order in orders]
        return [_run(evaluator, rows, editor, max_steps) for rows in chosen]

    return measured(range(seed, seed + num_runs), 1, measure, path=path, progress=progress, unit="run")


def summarize_sequences(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of a table: error rate before and after all edits, what holds then, and the runs themselves."""
    columns = {key: [run[key] for run in runs] for key in runs[0]}
    error_rates = torch.tensor(columns["error_rates"], dtype=torch.float64)
    deviation = error_rates.std(0, correction=min(1, len(runs) - 1))  # 0 of a single run
    return {
        "name": name,
        "before": error_rates[:, 0].mean().item(),
        "after": error_rates[:, -1].mean().item(),
        "deviation": deviation[-1].item(),
        "success_rate": torch.tensor(columns["successes"]).double().mean().item(),
        "retained_at_the_end": sum(run["retained"][-1] for run in runs) / len(runs),
        "edits_in_a_row": len(runs[0]["successes"]),
        "num_runs": len(runs),
        **columns,
    }


def _run(
    evaluator: ErrorDrawdownEvaluator, requests: list[Request], editor: AnyEditor, max_steps: int
) -> dict[str, Any]:
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
            retained.append((evaluator.classify(images[:count]) == targets[:count]).double().mean().item())
    finally:
        while len(stack):
            stack.undo()
    # Every state is one set of parameters for the same layers, so all are measured like edits of the original model.
    size = evaluator.group_size
    groups = [evaluator.predict(states[start : start + size])[1:] for start in range(0, len(states), size)]
    error_rates = [evaluator.error_rate, *(evaluator.error_rate_of(each) for each in torch.cat(groups))]
    return {"error_rates": error_rates, "successes": successes, "retained": retained}
