"""One mistake, its edit, and everything else that the edit changed: what a person looks at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from editable_hf.core.editors import Editor
from editable_hf.data.requests import make_edit_requests
from editable_hf.evaluation.bleu_evaluator import BleuDrawdownEvaluator

_MAX_TRIES = 20


def showcase(
    evaluator: BleuDrawdownEvaluator,
    sources: Sequence[str],
    references: Sequence[str],
    editor: Editor,
    *,
    max_steps: int,
    length_penalty: float = 0.0,
    num_alternatives: int = 32,
) -> dict[str, Any] | None:
    """Edits the first test sentence that the model translates wrongly towards its reference.

    Wrong translations that an edit cannot mend are passed over: beam search finds nothing but the reference, which is
    longer than the model can decode, or the likeliest already.

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
        translation of every other sentence that changed; `None` if none of the first 20 wrong translations can be
        mended.
    """
    wrong = [index for index, text in enumerate(evaluator.before) if text != references[index]]
    options = {"max_steps": max_steps, "length_penalty": length_penalty, "progress": None}
    for index in wrong[:_MAX_TRIES]:
        pair = {"sources": [sources[index]], "targets": [references[index]], "num_alternatives": num_alternatives}
        try:
            requests = make_edit_requests(evaluator.model, evaluator.tokenizer, **pair, progress=None)
            (record,) = evaluator.evaluate(requests, editor, shard=False, **options)
        except ValueError:  # no alternative, or too long
            continue
        if record["num_steps"] > 0:
            break
    else:
        return None
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


def format_showcase(record: Mapping[str, Any] | None, max_others: int = 10) -> str:
    """The record of [`showcase`] as text for a terminal."""
    if record is None:
        return f"No edit to show: none of the first {_MAX_TRIES} wrong translations, if any, can be mended by one."
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
