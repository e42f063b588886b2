"""One mistake, its edit, and everything else that the edit changed: what a person looks at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from editable_hf.core.editing import constraint_value
from editable_hf.core.editors import Editor
from editable_hf.data.requests import NoEditRequestsError, make_edit_requests, request_constraint
from editable_hf.evaluation.bleu_edits import BleuDrawdownEvaluator
from editable_hf.models.beam_search import longest_decodable

_MAX_TRIES = 20

_ALONE = "beam search finds nothing but the reference"
_TOO_LONG = "the reference is longer than the model can decode"
_LIKELIEST = "the reference is likelier than every alternative already"


def showcase(
    evaluator: BleuDrawdownEvaluator,
    sources: Sequence[str],
    references: Sequence[str],
    editor: Editor,
    *,
    max_steps: int,
    length_penalty: float = 0.0,
    num_alternatives: int = 32,
) -> dict[str, Any]:
    """Edits the first test sentence that the model translates wrongly towards its reference.

    Wrong translations that an edit cannot mend are passed over, up to 20 of them.

    Args:
        evaluator: Holds the model and what it makes of the test sentences.
        sources: The evaluator's test sentences.
        references: Their references, as the model should produce them.
        editor: How to edit.
        max_steps: k in Eq. 1.
        length_penalty: Exponent of the length normalization in `l_e`.
        num_alternatives: Beam size for the translations that the reference must beat.

    Returns:
        The evaluator's record of that edit with `reference_index`, `bleu_before`, and the source, the old and the new
        translation of every other sentence that changed. If no edit was made, only `num_wrong`, how many translations
        differ from their reference, and `skipped`, why those tried were passed over, with how many of each.
    """
    wrong = [index for index, text in enumerate(evaluator.before) if text != references[index]]
    skipped: Counter[str] = Counter()
    for index in wrong[:_MAX_TRIES]:
        try:
            model, options = evaluator.model, {"num_alternatives": num_alternatives, "progress": None}
            pair = {"sources": [sources[index]], "targets": [references[index]]}
            requests = make_edit_requests(model, evaluator.tokenizer, **pair, **options)
            reason = _why_not(evaluator, requests[0], length_penalty)
        except NoEditRequestsError:
            reason = _ALONE
        if reason is None:
            break
        skipped[reason] += 1
    else:
        return {"num_wrong": len(wrong), "skipped": dict(skipped)}
    options = {"max_steps": max_steps, "length_penalty": length_penalty, "progress": None}
    (record,) = evaluator.evaluate(requests, editor, shard=False, **options)
    others = [
        {
            "source": sources[change["index"]],
            "reference": references[change["index"]],
            "before": evaluator.before[change["index"]],
            "after": change["after"],
        }
        for change in record["changed"]
        if change["index"] != index
    ]
    return {**record, "reference_index": index, "bleu_before": evaluator.bleu, "others": others}


def _why_not(evaluator: BleuDrawdownEvaluator, request: Mapping[str, Any], length_penalty: float) -> str | None:
    """Why there is nothing to see in this edit, or `None`."""
    model, longest = evaluator.model, longest_decodable(evaluator.model)
    if longest is not None and len(request["labels"]) > longest:
        return _TOO_LONG
    constraint = request_constraint(request, model, length_penalty)
    # Beam search missed the likeliest translation: `l_e` holds without a step.
    if constraint_value(model, constraint) <= 0:
        return _LIKELIEST
    return None


def format_showcase(record: Mapping[str, Any], max_others: int = 10) -> str:
    """The record of [`showcase`] as text for a terminal."""
    if "source" not in record:
        return _format_nothing(record["num_wrong"], record["skipped"])
    state = "l_e <= 0 reached" if record["success"] else "l_e <= 0 NOT reached"
    lines = [
        "One wrong translation, before and after one call of edit():",
        f"  source     {record['source']}",
        f"  before     {record['before']}",
        f"  wanted     {record['target']}",
        f"  after      {record['after']}",
        f"  {state} in {record['num_steps']} steps, {record['edit_seconds']:.2f} s; "
        f"test BLEU {record['bleu_before']:.2f} -> {record['bleu']:.2f}",
        "",
        f"Other test sentences whose translation changed because of it: {len(record['others'])}",
    ]
    for other in record["others"][:max_others]:
        lines += [
            f"  source     {other['source']}",
            f"  before     {other['before']}",
            f"  after      {other['after']}",
            f"  reference  {other['reference']}",
            "",
        ]
    if len(record["others"]) > max_others:
        lines.append(f"  ... and {len(record['others']) - max_others} more in showcase.json")
    return "\n".join(lines)


def _format_nothing(num_wrong: int, skipped: Mapping[str, int]) -> str:
    if num_wrong == 0:
        return "There is no mistake to edit: each translation equals its reference."
    reasons = "; ".join(f"{count} x {reason}" for reason, count in skipped.items())
    return (
        f"No edit to show: {sum(skipped.values())} of the {num_wrong} translations that differ from their reference "
        f"were tried, and none can be mended by an edit: {reasons}."
    )
