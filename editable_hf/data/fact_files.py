"""Edits of facts in the forms that are published, read as the rows of [`fact_requests`].

CounterFact (Meng et al. 2022) as ROME and as EasyEdit have it, zsRE (Levy et al. 2017) as MEND has it, and WikiBigEdit
tell the same under different keys: what to ask, what to say, what was said, another wording, and what should stay.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from editable_hf.data.facts import REQUEST_FEATURES
from editable_hf.data.json_fields import COUNT, NAMES, TEXT, Expected, check_fields, parse_json
from editable_hf.data.text_lines import read_lines

logger = logging.getLogger(__name__)


class FactForm(NamedTuple):
    """A published form.

    Attributes:
        name: Of the data set, and of who gave it this form.
        expected: The keys of a row by which it is recognized, and what they hold; dots lead into objects.
        request: What a row with these keys asks for; what it leaves out is empty.
    """

    name: str
    expected: Mapping[str, Expected]
    request: Callable[[Mapping[str, Any]], dict[str, Any]]


def _rome(row: Mapping[str, Any]) -> dict[str, Any]:
    subject, old = row["requested_rewrite.subject"], row["requested_rewrite.target_true.str"]
    return {
        "subject": subject,
        "prompt": row["requested_rewrite.prompt"].replace("{}", subject),
        "target": row["requested_rewrite.target_new.str"],
        "old": old,
        "paraphrases": row["paraphrase_prompts"],
        # chosen to have the true object of the edited subject
        "neighbors": [(prompt, old) for prompt in row["neighborhood_prompts"]],
    }


def _easy_edit(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "subject": row["subject"],
        "prompt": row["prompt"],
        "target": row["target_new"],
        "old": row.get("ground_truth", ""),
        "paraphrases": [row["rephrase_prompt"]],
        "neighbors": [(row["locality_prompt"], row["locality_ground_truth"])],
    }


def _mend(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "subject": row["subject"],
        "prompt": row["src"],
        "target": row["alt"],
        "old": row["pred"],
        "paraphrases": [row["rephrase"]],
        "neighbors": [(row["loc"], row["loc_ans"])],
    }


_TEXTS = Expected("a list of strings", lambda value: value == [] or NAMES.holds(value))
_WIKI_BIG_EDIT = ("prompt", "target_new", "subject", "rephrase_prompt", "locality_prompt", "locality_ground_truth")
_ROME = ("prompt", "subject", "target_new.str", "target_true.str")
# A form stands before those whose keys it has too.
FORMS = (
    FactForm(
        "CounterFact in ROME's form",
        {
            **{f"requested_rewrite.{key}": TEXT for key in _ROME},
            "paraphrase_prompts": _TEXTS,
            "neighborhood_prompts": _TEXTS,
        },
        _rome,
    ),
    FactForm(
        "CounterFact in EasyEdit's form",
        {"ground_truth": TEXT, **dict.fromkeys(_WIKI_BIG_EDIT, TEXT)},
        _easy_edit,
    ),
    FactForm(
        "zsRE in MEND's form",
        dict.fromkeys(("subject", "src", "pred", "rephrase", "alt", "loc", "loc_ans"), TEXT),
        _mend,
    ),
    FactForm("WikiBigEdit", dict.fromkeys(_WIKI_BIG_EDIT, TEXT), _easy_edit),
)


def read_fact_requests(path: str | os.PathLike) -> Dataset:
    """Reads edits of facts from a public file: a JSON list or JSON lines, plain, `.xz` or `.gz`.

    Each row is recognized by its keys as one of `FORMS`. Answers get the space that a new word has before it. A row
    with an empty target, of which zsRE has a few, is left out with a warning.

    Args:
        path: The file, UTF-8.

    Returns:
        A dataset with the columns of [`fact_requests`]. `id` is `case_id`, or the number of the row from 0 where
        there is none; `old` is what zsRE's authors had a model say (`pred`), and empty for WikiBigEdit, as is
        `portability` for all.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is no JSON, holds no edit, or a row is of none of the forms; names the row, from 1.
    """
    requests, without_target = [], []
    for number, row in enumerate(_rows(Path(path)), start=1):
        request = _request(row, number, f"{path}, row {number}")
        if request["target"].strip():
            requests.append(request)
        else:
            without_target.append(number)
    if without_target:
        logger.warning("%s: rows %s have an empty target and are left out.", path, without_target)
    if not requests:
        raise ValueError(f"{path} holds no edit of a fact; give a file of {', '.join(form.name for form in FORMS)}.")
    return Dataset.from_list(requests, features=REQUEST_FEATURES)


def _rows(path: Path) -> list[Any]:
    lines = read_lines(path)
    text = "\n".join(lines)
    if text.lstrip().startswith("["):
        return _parsed(text, str(path))
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _parsed(text: str, where: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(
            f"{where}: expected a JSON list of objects, or one JSON object a line, got {text[:60]!r} ({error}); "
            "fetch the file again."
        ) from error


def _request(row: Any, number: int, where: str) -> dict[str, Any]:
    flat = _flat(row) if isinstance(row, dict) else {}
    form = next((form for form in FORMS if form.expected.keys() <= flat.keys()), None)
    if form is None:
        forms = "; ".join(f"{form.name}: {', '.join(form.expected)}" for form in FORMS)
        got = ", ".join(flat) or json.dumps(row)[:60]
        raise ValueError(f"{where}: expected the keys of one of these forms ({forms}), got {got}.")
    check_fields(flat, {"case_id": COUNT, **form.expected}, f"{where} ({form.name})", "correct the row")
    request = {"id": flat.get("case_id", number - 1), "portability": [], **form.request(flat)}
    request["neighbors"] = [{"prompt": prompt, "answer": _spaced(answer)} for prompt, answer in request["neighbors"]]
    request |= {key: _spaced(request[key]) for key in ("target", "old")}
    return {key: request[key] for key in REQUEST_FEATURES}


def _spaced(answer: str) -> str:
    return f" {answer.strip()}" if answer.strip() else ""


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """The values of a row, and of the objects in it, by their keys with dots between."""
    flat = {}
    for key, value in row.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat
