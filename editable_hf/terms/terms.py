"""Edits that make terms hold in sentences that the edit has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.editing import AnyEditor
from editable_hf.data.requests import make_edit_requests
from editable_hf.evaluation.verified_edit import VerifiedEdit
from editable_hf.patches.making import configured_edit, patch_of
from editable_hf.patches.patch import Patch
from editable_hf.terms.examples import Example, TermExamples, translate
from editable_hf.training.editor_config import EditorConfig


@dataclass(frozen=True)
class TermEdit:
    """One edit for one or several terms.

    Attributes:
        outcome: Of the last round that reached its goal; `None` if there was no sentence to edit for.
        examples: With the sentences that joined the edit.
        states: What holds, for each term, as `patch.json` keeps it under `metrics.terms`.
        num_rounds: How often sentences were added.
    """

    outcome: VerifiedEdit | None
    examples: list[TermExamples]
    states: list[dict[str, Any]]
    num_rounds: int

    def patch(self, model: PreTrainedModel, config: EditorConfig) -> Patch | None:
        """The edit as a patch; `None` if it failed or there was nothing to edit."""
        if self.outcome is None:
            return None
        return patch_of(model, self.outcome, config, metrics={"terms": self.states})


def edit_terms(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TermExamples],
    config: EditorConfig,
    *,
    max_rounds: int = 3,
    num_alternatives: int = 16,
    editor: AnyEditor | None = None,
) -> TermEdit:
    """Edits for all sentences at once, looks at the sentences for checking, adds those that fail, and edits anew.

    The model is left as it was. It ends when all checked sentences are right, an edit fails, or after `max_rounds`;
    then the sentences that were held out tell how far the terms hold.

    Args:
        model: An encoder-decoder model.
        tokenizer: Its tokenizer.
        examples: From [`find_examples`].
        config: The editor, its layers and its most steps.
        max_rounds: Rounds at most.
        num_alternatives: Translations that each target must beat.
        editor: In place of the configuration's.

    Raises:
        ValueError: If `max_rounds` is below 1.
    """
    if max_rounds < 1:
        raise ValueError(f"Expected `max_rounds` of at least 1, got {max_rounds}; give the default of 3, say.")
    current, outcome, done, num_rounds = list(examples), None, list(examples), 0
    while num_rounds < max_rounds and any(each.edit for each in current):
        rows = [row for each in current for row in each.edit]
        requests = term_requests(model, tokenizer, rows, num_alternatives)
        num_rounds += 1
        # Each step is for all sentences that do not hold yet: with the worst alone, ten terms would not hold in time.
        found = configured_edit(model, tokenizer, list(requests), config, max_rounds=3, editor=editor)
        if outcome is not None and not found.result.success:
            break
        outcome, done = found, current
        if not found.result.success:
            break
        current = [_with_failures(model, tokenizer, each, found.result.params) for each in current]
        if current == done:
            break
    params = outcome.result.params if outcome is not None and outcome.result.success else {}
    return TermEdit(outcome, done, [_state(model, tokenizer, each, params) for each in done], num_rounds)


def term_requests(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    num_alternatives: int = 16,
    progress: str | None = None,
) -> Dataset:
    """Requests that ask for the term in each of some sentences, e.g. the `edit_dataset` of a trainer.

    Terms of training must not be among those that are measured.

    Args:
        model: Proposes what each target must beat.
        tokenizer: Its tokenizer.
        examples: Of one term or several, e.g. all that [`find_examples`] found to edit for.
        num_alternatives: See [`make_edit_requests`].
        progress: Same.
    """
    sources, targets = [row.source for row in examples], [row.target for row in examples]
    options = {"num_alternatives": num_alternatives, "progress": progress}
    return make_edit_requests(model, tokenizer, sources, targets=targets, **options)


def _with_failures(model, tokenizer, examples: TermExamples, params) -> TermExamples:
    """The same examples, where those for checking that fail have joined those to edit for."""
    outputs = translate(model, tokenizer, [row.source for row in examples.check], params)
    failed = [row for row, text in zip(examples.check, outputs, strict=True) if not examples.term.is_right(text)]
    kept = [row for row in examples.check if row not in failed]
    return replace(examples, edit=[*examples.edit, *failed], check=kept)


def _state(model, tokenizer, examples: TermExamples, params) -> dict[str, Any]:
    state: dict[str, Any] = {
        "source": list(examples.term.source),
        "target": list(examples.term.target),
        "replaces": list(examples.term.replaces),
        "left_out": examples.left_out,
    }
    for name, rows in (("edited", examples.edit), ("held_out", examples.held_out)):
        state[name] = len(rows)
        state[f"{name}_right_before"] = sum(examples.term.is_right(row.before) for row in rows)
        state[f"{name}_right"] = _num_right(model, tokenizer, examples, rows, params)
    return state


def _num_right(model, tokenizer, examples: TermExamples, rows: Sequence[Example], params) -> int:
    outputs = translate(model, tokenizer, [row.source for row in rows], params)
    return sum(map(examples.term.is_right, outputs))
