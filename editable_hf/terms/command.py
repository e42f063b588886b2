"""What `editable-hf terms` does: from a glossary and sentences to patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.data.sentences import read_sentences
from editable_hf.terms.examples import find_examples
from editable_hf.terms.glossary import describe_counts, read_glossary
from editable_hf.terms.terms import TermEdit, edit_terms
from editable_hf.training.editor_config import EditorConfig


def patch_glossary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: EditorConfig,
    glossary: str,
    corpus: str,
    output: str,
    *,
    languages: Sequence[str] | None = None,
    separate: bool = False,
    max_rounds: int = 3,
    num_alternatives: int = 16,
) -> dict[str, Any]:
    """Writes one patch for a glossary, or one for each term, and returns what holds.

    Args:
        model: The model, left as it was.
        tokenizer: Its tokenizer.
        config: The editor, its layers, its most steps, and the prefix of sources.
        glossary: A `.tsv`, `.tbx` or `.po` file, see [`read_glossary`].
        corpus: Source sentences, see [`read_sentences`]; references are ignored.
        output: New folder for the patch; with `separate` it holds a folder for each term, `0000` and so on. Each of
            these is a patch of the model as it is, not of one with the others.
        languages: Of source and target, as a TBX file names them.
        separate: One patch for each term.
        max_rounds: See [`edit_terms`].
        num_alternatives: See [`edit_terms`].

    Returns:
        `terms` (what holds, for each term that could be edited or looked at), `patches` (folders), `left_out`
        (entries of the glossary by reason), and `absent` (how many terms no sentence uses).
    """
    read = read_glossary(glossary, languages)
    sentences = read_sentences(corpus).sources
    examples = find_examples(model, tokenizer, read.terms, sentences, prefix=config.inputs.get("source_prefix", ""))
    met = [each for each in examples if each.edit or each.check or each.held_out or each.left_out]
    groups = [[each] for each in met] if separate else [met] if met else []
    states, patches = [], []
    for number, group in enumerate(groups):
        edit: TermEdit = edit_terms(
            model, tokenizer, group, config, max_rounds=max_rounds, num_alternatives=num_alternatives
        )
        patch, folder = edit.patch(model, config), str(Path(output) / f"{number:04}")
        if patch is not None:
            patches.append(folder if separate else output)
            patch.save_pretrained(patches[-1])
        states += [{**state, "patch": None if patch is None else patches[-1]} for state in edit.states]
    return {"terms": states, "patches": patches, "left_out": read.left_out, "absent": len(examples) - len(met)}


def describe_terms(found: dict[str, Any]) -> str:
    """What [`patch_glossary`] found, a line for each term."""
    lines = [_describe(state) for state in found["terms"]]
    if found["left_out"]:
        lines.append(f"Entries of the glossary left out: {describe_counts(found['left_out'])}")
    if found["absent"]:
        lines.append(f"Terms that no sentence of the corpus uses: {found['absent']:,}")
    patches: Sequence[str] = found["patches"]
    if not patches:
        lines.append(
            "No patch was written: no edit reached l_e <= 0, or there was no sentence to edit for. Give more "
            "sentences in --corpus, what the terms replace in the glossary's third column, or raise --max_steps."
        )
    elif len(patches) == 1:
        lines.append(f"Patch: {patches[0]}")
    else:
        lines.append(f"Patches: {patches[0]} to {patches[-1]}")
    return "\n".join(lines)


def _describe(state: dict[str, Any]) -> str:
    left_out = f"; left out: {describe_counts(state['left_out'])}" if state["left_out"] else ""
    parts = [
        f"{name} sentences right {state[f'{key}_right_before']} -> {state[f'{key}_right']} of {state[key]}"
        for name, key in (("edited", "edited"), ("unseen", "held_out"))
    ]
    return f"{state['source'][0]} = {state['target'][0]}: {', '.join(parts)}{left_out}"
