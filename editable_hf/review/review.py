"""What a patch changes: every output of a regression set that is another one afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from editable_hf.review.terms import TermReview

TRANSLATION, CONTINUATION, IMAGE = "translation", "continuation", "image"
BLEU, ERROR_RATE = "BLEU", "error rate"

BETTER, WORSE, NEUTRAL = "better", "worse", "neutral"

# Points of chrF: what is displayed as 0.0 is neither better nor worse.
_LEAST_GAIN = 0.05
# An error rate of 0.13 - 0.12 is above 0.01 in floating point; nobody sets a limit as fine as this.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Change:
    """One output that is another one after the patch.

    Attributes:
        index: Of the example in the regression set, from 0.
        source: The sentence, or a name for the image.
        reference: The right translation or class; `None` if it is not known.
        before: Translation or class of the unedited model.
        after: Of the patched model.
        edited: Whether this is an example that the patch is for.
        distance: How much changed: of translations the [`word_distance`], a fraction; 1 for classes.
        gain: How much better it is: of translations the sentence's chrF against the reference (0-100) after the patch
            minus before; of others 1 if it is right now, -1 if it was right, else 0; `None` without a reference.
        picture: The image as a `data:` URL, `None` for sentences.
    """

    index: int
    source: str
    reference: str | None
    before: str
    after: str
    edited: bool
    distance: float
    gain: float | None
    picture: str | None = None

    @property
    def effect(self) -> str | None:
        """ "better", "worse" or "neutral", by `gain`; `None` without a reference."""
        if self.gain is None:
            return None
        if abs(self.gain) < _LEAST_GAIN:
            return NEUTRAL
        return BETTER if self.gain > 0 else WORSE


@dataclass(frozen=True)
class Review:
    """What a patch changes, over a regression set; from [`review_translations`],
    [`review_continuations`] or [`review_images`].

    Attributes:
        kind: "translation", "continuation" or "image".
        patch: What is reviewed, e.g. the name of the patch.
        base_model: What it patches.
        regression_set: What both were run on.
        metric: "BLEU" (0-100, higher is better) or "error rate" (a fraction, lower is better).
        metric_detail: How the metric was computed.
        before: The metric of the unedited model, `None` without references.
        after: Of the patched model, `None` without references.
        num_examples: Size of the regression set.
        changes: The outputs that changed: those that the patch is for first, then by how much, the largest first.
        terms: Of a patch for a glossary; `None` for others.
    """

    kind: str
    patch: str
    base_model: str
    regression_set: str
    metric: str
    metric_detail: str
    before: float | None
    after: float | None
    num_examples: int
    changes: list[Change]
    terms: TermReview | None = None

    @property
    def drawdown(self) -> float | None:
        """Absolute difference of the metric (section 4), in its unit; `None` without references."""
        return None if self.before is None or self.after is None else abs(self.before - self.after)

    @property
    def share_changed(self) -> float:
        """Changed outputs as a fraction of all."""
        return len(self.changes) / self.num_examples

    def count(self, effect: str) -> int:
        """How many changes are "better", "worse" or "neutral"."""
        return sum(change.effect == effect for change in self.changes)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it, with what is derived from it."""
        changes = [{**asdict(change), "effect": change.effect} for change in self.changes]
        derived = {
            "drawdown": self.drawdown,
            "num_changed": len(self.changes),
            "share_changed": self.share_changed,
            "num_better": None if self.drawdown is None else self.count(BETTER),
            "num_worse": None if self.drawdown is None else self.count(WORSE),
        }
        own = {name: value for name, value in vars(self).items() if name not in ("changes", "terms")}
        terms = None if self.terms is None else asdict(self.terms)
        return {**own, **derived, "terms": terms, "changes": changes}


def exceeds(review: Review, max_drawdown: float) -> bool:
    """Whether a patch changes the metric by more than it may, up or down.

    Args:
        review: With references.
        max_drawdown: In the unit of the metric: BLEU points, or a fraction for error rates.

    Raises:
        ValueError: If the review has no metric, so that nothing can be said, or the limit is not 0 or more.
    """
    if not max_drawdown >= 0:
        raise ValueError(f"`max_drawdown` must be 0 or more, got {max_drawdown}.")
    if review.drawdown is None:
        raise ValueError(
            f"Expected references to compute the drawdown that `max_drawdown` limits, but {review.regression_set} has "
            'none; add a "target" to each of its lines, or review without a limit.'
        )
    return review.drawdown > max_drawdown + _ROUNDING


def sorted_changes(changes: Sequence[Change]) -> list[Change]:
    """What the patch is for first, then the largest changes; of equal ones the worst, then the first."""
    return sorted(changes, key=lambda change: (not change.edited, -change.distance, change.gain or 0.0, change.index))


def own_params(model: PreTrainedModel, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The edited parameters on the device and in the precision that the model has them.

    Raises:
        ValueError: If there are none, or the model has none of the same name and shape.
    """
    own = dict(model.named_parameters())
    # Broadcasting would accept some shapes that are wrong.
    wrong = [name for name, value in params.items() if name not in own or own[name].shape != value.shape]
    if wrong or not params:
        raise ValueError(
            f"Expected edited parameters of {type(model).__name__}, but it has none of the name and shape of "
            f"{', '.join(wrong[:3]) or '(nothing was given)'}; review a patch with the model that it was made for."
        )
    return {name: value.detach().to(own[name]) for name, value in params.items()}


def name_of(model: PreTrainedModel) -> str:
    """What to call a model: the id or path it came from, else its class."""
    return model.config.name_or_path or type(model).__name__
