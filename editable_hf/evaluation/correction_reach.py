"""How far a correction of a translation reaches: it should carry over to other wordings and leave the rest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from editable_hf.evaluation.bootstrap import bootstrap_mean

Record = dict[str, Any]

# Lists of a request's related sentences: the first two are to follow the correction, the last is to stay.
_FOLLOW, _STAY = ("paraphrases", "neighbors"), "unrelated"


def related_sentences(request: Mapping[str, Any]) -> list[str]:
    """The source of a request of [`embedded_requests`] and those of all its related sentences, without repetitions."""
    related = [pair["source"] for name in (*_FOLLOW, _STAY) for pair in request[name]]
    return list(dict.fromkeys([request["source"], *related]))


def correction_reach(request: Mapping[str, Any], before: Mapping[str, str], after: Mapping[str, str]) -> Record:
    """What a correction did to the sentences of its request.

    Args:
        request: A row of [`embedded_requests`], or one of the same form.
        before: Translations of its [`related_sentences`] by the uncorrected model.
        after: The same by the corrected one.

    Returns:
        `holds` (the source is translated as wanted); for `paraphrases` and `neighbors` the fraction that is
        translated as wanted, with `_before` for the uncorrected model; `unrelated`, the fraction that stayed the same.
    """
    record: Record = {"source": request["source"], "holds": after[request["source"]] == request["target"]}
    for name in _FOLLOW:
        for suffix, outputs in (("", after), ("_before", before)):
            record[name + suffix] = _share(outputs[pair["source"]] == pair["target"] for pair in request[name])
    stayed = (after[pair["source"]] == before[pair["source"]] for pair in request[_STAY])
    return {**record, "unrelated": _share(stayed)}


def summarize_reach(name: str, records: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Record:
    """Means over the records of [`correction_reach`], with 95% bootstrap intervals.

    Args:
        name: Of the row.
        records: At least one.
        columns: Further numbers of the records to average.
    """
    keys = ("holds", *_FOLLOW, *(f"{key}_before" for key in _FOLLOW), _STAY, *columns)
    found = {key: bootstrap_mean([record[key] for record in records]) for key in keys}
    return {
        "name": name,
        **{key: interval.mean for key, interval in found.items()},
        "num_edits": len(records),
        "intervals": {key: [interval.low, interval.high] for key, interval in found.items()},
    }


def _share(values) -> float:
    values = list(values)
    return sum(values) / len(values)
