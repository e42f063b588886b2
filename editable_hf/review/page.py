"""A review as one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib.resources import files
from string import Template

from editable_hf.review.review import BETTER, IMAGE, NEUTRAL, TRANSLATION, WORSE, Change, Review, exceeds
from editable_hf.review.text import format_metric, marked
from editable_hf.review.words import ADDED, REMOVED

_TAGGED = {REMOVED: "<del>{}</del>", ADDED: "<ins>{}</ins>"}
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def format_html(review: Review, max_drawdown: float | None = None) -> str:
    """The review as a page with search, filters and sorting, for wide and narrow screens, light and dark.

    The page may load nothing and run no script but its own, whatever is in the sentences. It is readable without
    scripts, too.

    Args:
        review: Of a patch.
        max_drawdown: The limit to compare with, none if not given.
    """
    template = files("editable_hf.review").joinpath("templates/review.html").read_text(encoding="utf-8")
    script_hash = hashlib.sha256(_SCRIPT.search(template)[1].encode()).digest()
    return Template(template).substitute(
        script_hash=base64.b64encode(script_hash).decode("ascii"),
        patch=html.escape(review.patch),
        base_model=html.escape(review.base_model),
        regression_set=html.escape(review.regression_set),
        kind=html.escape(review.kind),
        figures="\n".join(_figures(review, max_drawdown)),
        bar=_bar(review),
        effects="\n".join(_effect_options(review)),
        orders="\n".join(_order_options(review)),
        distance_hidden="hidden" if review.kind == IMAGE else "",
        edited_hidden="" if any(change.edited for change in review.changes) else "hidden",
        num_changes=f"{len(review.changes):,}",
        noun="prediction" if review.kind == IMAGE else review.kind,
        changes="\n".join(_article(review, change) for change in review.changes),
    )


def _figures(review: Review, max_drawdown: float | None) -> list[str]:
    share = f"{len(review.changes):,} of {review.num_examples:,}"
    changed = _figure("Outputs changed", f"{review.share_changed:.1%}", share)
    if review.drawdown is None:
        unknown = _figure(review.metric, "not known", "the regression set has no references")
        return [changed, unknown, *_term_figures(review)]
    before, after, drawdown = (format_metric(review, v) for v in (review.before, review.after, review.drawdown))
    detail, tone = "absolute difference", ""
    if max_drawdown is not None:
        is_above = exceeds(review, max_drawdown)
        tone = "bad" if is_above else "good"
        detail = f"{'above' if is_above else 'within'} the limit of {format_metric(review, max_drawdown)}"
    return [
        _figure(review.metric, f"{before} → {after}", review.metric_detail),
        _figure("Drawdown", drawdown, detail, tone),
        changed,
        *_term_figures(review),
    ]


def _term_figures(review: Review) -> list[str]:
    if review.terms is None:
        return []
    figures = [
        _figure(each.term, f"{each.right_before:,} → {each.right_after:,}", f"of {each.num_sentences:,} unseen right")
        for each in review.terms.terms
    ]
    changed, total = review.terms.num_others_changed, review.terms.num_others
    return [*figures, _figure("Without a term", f"{changed:,}", f"of {total:,} changed")]


def _figure(title: str, value: str, detail: str, tone: str = "") -> str:
    title, value, detail = map(html.escape, (title, value, detail))
    return f'<div class="figure {tone}"><dt>{title}</dt><dd>{value}<small>{detail}</small></dd></div>'


def _bar(review: Review) -> str:
    """Worse, neither and better side by side; nothing without references or changes."""
    counts = [(WORSE, review.count(WORSE)), (NEUTRAL, review.count(NEUTRAL)), (BETTER, review.count(BETTER))]
    if not sum(count for _, count in counts):
        return ""
    names = {WORSE: "worse", NEUTRAL: "neither", BETTER: "better"}
    parts = "".join(f'<span class="{effect}" style="flex-grow:{count}"></span>' for effect, count in counts if count)
    legend = "".join(f'<li class="{effect}">{count:,} {names[effect]}</li>' for effect, count in counts)
    return f'<div class="bar" aria-hidden="true">{parts}</div><ul class="legend">{legend}</ul>'


def _effect_options(review: Review) -> list[str]:
    options = [("", "all changes")]
    if review.drawdown is not None:
        options += [(WORSE, "only worse"), (BETTER, "only better"), (NEUTRAL, "only neither")]
    return [f'<option value="{value}">{text}</option>' for value, text in options]


def _order_options(review: Review) -> list[str]:
    options = [("rank", "what the patch is for first")] if review.kind == IMAGE else [("rank", "most changed first")]
    if review.drawdown is not None:
        options += [("worst", "worst first"), ("best", "best first")]
    options += [("index", "in the set's order")]
    return [f'<option value="{value}">{text}</option>' for value, text in options]


def _article(review: Review, change: Change) -> str:
    before, after = marked(change, html.escape, _TAGGED)
    is_image = review.kind == IMAGE
    gain = "" if change.gain is None else f"{change.gain:.3f}"
    rows = [] if is_image else [_row("source", "Source", html.escape(change.source))]
    rows += [_row("before", "Before", before), _row("after", "After", after)]
    if change.reference is not None:
        rows.append(_row("reference", "Truth" if is_image else "Reference", html.escape(change.reference)))
    picture = f'<img src="{html.escape(change.picture)}" alt="" loading="lazy">' if change.picture else ""
    content = f"{picture}<dl>{''.join(rows)}</dl>"
    return (
        f'<article data-index="{change.index}" data-distance="{change.distance:.4f}" data-gain="{gain}" '
        f'data-effect="{change.effect or ""}" data-edited="{int(change.edited)}">'
        f'<header>{_badges(review, change)}</header><div class="body">{content}</div></article>'
    )


def _badges(review: Review, change: Change) -> str:
    name = change.source if review.kind == IMAGE else f"Sentence {change.index:,}"
    badges = [f"<h2>{html.escape(name)}</h2>"]
    if change.edited:
        badges.append('<span class="badge edited">what the patch is for</span>')
    if change.effect is not None:
        text = {WORSE: "worse", BETTER: "better", NEUTRAL: "neither"}[change.effect]
        gain = f" {change.gain:+.1f} chrF" if review.kind == TRANSLATION else ""
        badges.append(f'<span class="badge {change.effect}">{text}{gain}</span>')
    if review.kind != IMAGE:
        share = f"{change.distance:.0%} of words" if change.distance else "spaces only"
        meter = f'<span class="meter"><i style="width:{change.distance:.0%}"></i></span>'
        badges.append(f'<span class="share">{meter}{share}</span>')
    return "".join(badges)


def _row(name: str, title: str, content: str) -> str:
    content = content or "<em>empty</em>"
    return f'<div class="{name}"><dt>{title}</dt><dd dir="auto">{content}</dd></div>'
