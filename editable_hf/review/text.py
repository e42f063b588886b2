"""A review as text: for a terminal, and as Markdown for a pull request."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from editable_hf.review.review import BETTER, ERROR_RATE, IMAGE, TRANSLATION, WORSE, Change, Review, exceeds
from editable_hf.review.words import ADDED, REMOVED, Segment, mark_words

_RED, _GREEN, _BOLD, _DIM, _RESET = "\033[31m", "\033[32m", "\033[1m", "\033[2m", "\033[0m"
_MARKED = {REMOVED: "[-{}-]", ADDED: "{{+{}+}}"}  # as wdiff does
_COLORED = {REMOVED: f"{_RED}{_BOLD}{{}}{_RESET}", ADDED: f"{_GREEN}{_BOLD}{{}}{_RESET}"}
_TAGGED = {REMOVED: "<del>{}</del>", ADDED: "<ins>{}</ins>"}

# Sentences come from anywhere: an escape sequence in one would reach the terminal, a line break would end a table row.
# The others turn the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"[&<>|\\`*_~\[\]$]|[@#](?=\w)")
_MAX_MARKDOWN = 60_000  # characters; a comment on GitHub holds 65,536


def format_terminal(
    review: Review, max_changes: int = 20, color: bool = False, max_drawdown: float | None = None
) -> str:
    """The review as plain text, changed words marked by color or as `[-old-]` and `{+new+}`.

    Args:
        review: Of a patch.
        max_changes: How many changes to show.
        color: Whether the terminal shows ANSI colors.
        max_drawdown: The limit to compare with, none if not given.
    """
    bold, dim, reset = (_BOLD, _DIM, _RESET) if color else ("", "", "")
    lines = [f"{bold}{_plain(review.patch)}{reset} on {_plain(review.base_model)}, {_plain(review.regression_set)}"]
    lines += [f"  {line}" for line in summary(review, max_drawdown)]
    for change in review.changes[:max_changes]:
        before, after = marked(change, _plain, _COLORED if color else _MARKED)
        lines += ["", f"{bold}{_plain(change_title(review, change))}{reset}"]
        if review.kind != IMAGE:
            lines.append(f"  {dim}source   {reset} {_plain(change.source)}")
        lines += [f"  {dim}before   {reset} {before or '(empty)'}", f"  {dim}after    {reset} {after or '(empty)'}"]
        if change.reference is not None:
            name = "truth    " if review.kind == IMAGE else "reference"
            lines.append(f"  {dim}{name}{reset} {_plain(change.reference)}")
    left_out = len(review.changes) - max_changes
    if left_out > 0:
        lines += ["", f"... and {left_out:,} more"]
    return "\n".join(lines)


def format_markdown(review: Review, max_changes: int = 50, max_drawdown: float | None = None) -> str:
    """The review as Markdown that GitHub renders: the summary, and a table of the changes.

    Args:
        review: Of a patch.
        max_changes: How many changes to show; fewer if they would not fit into a comment on GitHub.
        max_drawdown: The limit to compare with, none if not given.
    """
    lines = [
        f"### Review of {_escaped(review.patch)}",
        "",
        f"On {_escaped(review.base_model)}, {_escaped(review.regression_set)}.",
        "",
        *(f"- {_escaped(line.replace('->', '→'))}" for line in summary(review, max_drawdown)),
    ]
    if not review.changes:
        return "\n".join([*lines, ""])
    has_references = review.drawdown is not None
    titles = ["Change", *(["Source"] if review.kind != IMAGE else []), "Before → after"]
    titles += [("Truth" if review.kind == IMAGE else "Reference")] if has_references else []
    lines += ["", f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    room = _MAX_MARKDOWN - sum(len(line) + 1 for line in lines)
    num_shown = 0
    for change in review.changes[:max_changes]:
        row = _row(review, change, has_references)
        room -= len(row) + 1
        if room < 0:
            break
        lines.append(row)
        num_shown += 1
    if num_shown < len(review.changes):
        lines += ["", f"... and {len(review.changes) - num_shown:,} more"]
    return "\n".join([*lines, ""])


def summary(review: Review, max_drawdown: float | None = None) -> list[str]:
    """What the review comes to, in two or three lines."""
    what = "predictions" if review.kind == IMAGE else f"{review.kind}s"
    share = f"{len(review.changes):,} of {review.num_examples:,} {what} changed ({review.share_changed:.1%})"
    if review.drawdown is None:
        return [f"{share}; {review.metric} is not known without references", *_term_lines(review)]
    better, worse = review.count(BETTER), review.count(WORSE)
    before, after, drawdown = (format_metric(review, v) for v in (review.before, review.after, review.drawdown))
    lines = [
        f"{review.metric} {before} -> {after}, drawdown {drawdown} ({review.metric_detail})",
        f"{share}: {worse:,} worse, {better:,} better, {len(review.changes) - better - worse:,} neither",
    ]
    if max_drawdown is not None:
        state = "ABOVE the limit" if exceeds(review, max_drawdown) else "within the limit"
        lines.append(f"{state} of {format_metric(review, max_drawdown)}")
    return [*lines, *_term_lines(review)]


def _term_lines(review: Review) -> list[str]:
    if review.terms is None:
        return []
    lines = []
    for each in review.terms.terms:
        right = f"{each.right_before:,} -> {each.right_after:,} of {each.num_sentences:,}"
        lines.append(f"{_plain(each.term)}: {right} unseen sentences right")
    changed, total = review.terms.num_others_changed, review.terms.num_others
    return [*lines, f"{changed:,} of {total:,} sentences without a term of the glossary changed"]


def format_metric(review: Review, value: float) -> str:
    """BLEU points with two decimals, an error rate in percent."""
    return f"{value:.2%}" if review.metric == ERROR_RATE else f"{value:.2f}"


def change_title(review: Review, change: Change) -> str:
    """Which example it is, and how much it changed, in one line."""
    parts = [change.source if review.kind == IMAGE else f"sentence {change.index}"]
    if review.kind != IMAGE:
        parts.append(f"{change.distance:.0%} of the words" if change.distance else "spaces only")
    if change.effect is not None:
        gain = f" ({change.gain:+.1f} chrF)" if review.kind == TRANSLATION else ""
        parts.append(f"{change.effect}{gain}")
    return ", ".join([*parts, *(["what the patch is for"] if change.edited else [])])


def marked(change: Change, escape: Callable[[str], str], marks: dict[str, str]) -> tuple[str, str]:
    """The old and the new output with the changed words marked.

    Args:
        change: Of a review.
        escape: What makes a piece of text harmless.
        marks: Formats for the pieces that were "removed" and "added".
    """

    def join(segments: Sequence[Segment]) -> str:
        return "".join(marks.get(kind, "{}").format(escape(text)) for kind, text in segments)

    before, after = mark_words(change.before, change.after)
    return join(before), join(after)


def _row(review: Review, change: Change, has_references: bool) -> str:
    before, after = marked(change, _escaped, _TAGGED)
    cells = [_escaped(change_title(review, change))]
    cells += [_escaped(change.source)] if review.kind != IMAGE else []
    cells += [f"{before or '*empty*'}<br>{after or '*empty*'}"]
    cells += [_escaped(change.reference)] if has_references else []
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Text without control characters, visible in their place."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def _escaped(text: str) -> str:
    """Text that Markdown takes literally, in a cell of a table, too, and that notifies nobody."""
    return _MARKDOWN.sub(_entity, _CONTROL.sub(" ", text))


def _entity(match: re.Match) -> str:
    character = match.group()
    # GitHub looks for @user and #123 when entities are characters again.
    return f"{character}<!-- -->" if character in "@#" else f"&#{ord(character)};"
