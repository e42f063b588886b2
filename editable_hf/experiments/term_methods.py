"""How a row of the table of terms makes a model use terms of a glossary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.baselines.fine_tuning import ft_l, loc_ft
from editable_hf.baselines.lora import lora
from editable_hf.core.editing import AnyEditor
from editable_hf.experiments.term_decoding import constrained_translations, replaced_translations
from editable_hf.terms.examples import TermExamples, translate
from editable_hf.terms.terms import edit_terms
from editable_hf.training.editor_config import EditorConfig


@dataclass(frozen=True)
class Setting:
    """What a row makes terms hold in, and how far it may go.

    Attributes:
        model: The network.
        tokenizer: Its tokenizer.
        config: The editor, the layers that it may move, and the most steps.
        max_rounds: See [`edit_terms`].
        num_alternatives: Same.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: EditorConfig
    max_rounds: int
    num_alternatives: int


class Fixed(NamedTuple):
    """The model after a method: what it says to sentences, and whether the method says that it reached its goal."""

    translations: Callable[[Sequence[str]], list[str]]
    success: bool = True


# `(setting, terms, rate)`, where the rate is a learning rate, a boost in nats, or `None` for a method that has none.
Fix = Callable[[Setting, Sequence[TermExamples], float | None], Fixed]


class Method(NamedTuple):
    """A way to make terms hold.

    Attributes:
        fix: Same.
        has_rate: Same.
        edits: Whether it changes weights, and so perhaps other sentences, but not how the model decodes.
    """

    fix: Fix
    has_rate: bool = True
    edits: bool = True


def _as_it_is(setting: Setting, examples: Sequence[TermExamples], rate: float | None) -> Fixed:
    return Fixed(partial(translate, setting.model, setting.tokenizer))


def _replaced(setting: Setting, examples: Sequence[TermExamples], rate: float | None) -> Fixed:
    terms = [each.term for each in examples]
    return Fixed(partial(replaced_translations, setting.model, setting.tokenizer, terms))


def _constrained(setting: Setting, examples: Sequence[TermExamples], rate: float) -> Fixed:
    terms = [each.term for each in examples]
    return Fixed(partial(constrained_translations, setting.model, setting.tokenizer, terms, boost=rate))


def _by_edit(editor: Callable[[Setting, float], AnyEditor]) -> Fix:
    def fix(setting: Setting, examples: Sequence[TermExamples], rate: float) -> Fixed:
        options = {"max_rounds": setting.max_rounds, "num_alternatives": setting.num_alternatives}
        options["editor"] = editor(setting, rate)
        result = edit_terms(setting.model, setting.tokenizer, examples, setting.config, **options).outcome.result
        return Fixed(partial(translate, setting.model, setting.tokenizer, params=result.params), result.success)

    return fix


METHODS = {
    "none": Method(_as_it_is, has_rate=False, edits=False),
    "replace": Method(_replaced, has_rate=False, edits=False),
    "constrain": Method(_constrained, edits=False),
    "ft_l": Method(_by_edit(lambda setting, rate: ft_l(learning_rate=rate, max_change=rate))),
    "loc_ft": Method(_by_edit(lambda setting, rate: loc_ft(learning_rate=rate))),
    "lora": Method(_by_edit(lambda setting, rate: lora(learning_rate=rate))),
    "gradient": Method(_by_edit(lambda setting, rate: setting.config.build_editor(learning_rate=rate))),
}
