"""How the edits of a row of the facts table are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.baselines.fine_tuning import ft_l, loc_ft
from editable_hf.baselines.grace import Grace
from editable_hf.baselines.key_covariance import key_covariances
from editable_hf.baselines.lora import lora
from editable_hf.baselines.memit import MEMIT_SEARCH, memit
from editable_hf.baselines.mend import Mend, MendExample, train_mend
from editable_hf.baselines.rome import rome
from editable_hf.baselines.ultra_edit import UltraEdit
from editable_hf.baselines.value_search import ROME_SEARCH, ValueSearch
from editable_hf.core.editing import AnyEditor
from editable_hf.core.selection import select_parameters
from editable_hf.evaluation.edit_evaluator import Request
from editable_hf.evaluation.fact_edits import EditorFor, FactEditEvaluator
from editable_hf.evaluation.grace_edits import GraceEditEvaluator
from editable_hf.evaluation.verified_edit import joint_constraint
from editable_hf.training.editor_config import EditorConfig

_MEND_STEPS = 300  # updates of ten edits each


@dataclass(frozen=True)
class Setting:
    """What a method can make its editor of.

    Attributes:
        model: The network that is edited.
        tokenizer: Its tokenizer.
        layers: What an edit may move.
        config: How the network was trained to be edited, if it was.
        texts: Ordinary text that the network knows, token ids.
        requests: Training edits, for editors that learn.
        seed: Of what they draw.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    layers: list[str]
    config: EditorConfig | None
    texts: Sequence[list[int]]
    requests: Sequence[Request]
    seed: int


@dataclass(frozen=True)
class Method:
    """A kind of edit: gives the editor with some `options`, all of them numbers, and what measures it."""

    prepare: Callable[[Setting], Callable[..., AnyEditor | EditorFor | Callable[[], Grace]]]
    options: tuple[str, ...] = ("learning_rate",)
    evaluator: type[FactEditEvaluator] = FactEditEvaluator


def _gradient(setting: Setting) -> Callable[..., AnyEditor]:
    return (setting.config or EditorConfig()).build_editor


def _nothing(setting: Setting) -> Callable[..., AnyEditor]:
    """As many columns for the network as it is."""

    def stay(model, constraint, params, max_steps):
        value = constraint(model, params)
        return params, value, [value.item()]

    return lambda: stay


def _within_a_box(learning_rate: float = 5e-4) -> AnyEditor:
    """FT-L whose box is as wide as one step: two numbers to try are one."""
    return ft_l(learning_rate=learning_rate, max_change=learning_rate)


def _by_subject(make: Callable[..., AnyEditor], one_layer: bool) -> Callable[[Setting], Callable[..., EditorFor]]:
    """ROME and MEMIT: they write where the subject ends, by the covariance of keys over text.

    Without `at_subject` they write where the prompt ends: a small network may look up there what it knows.
    """

    def prepare(setting: Setting) -> Callable[..., EditorFor]:
        covariances = key_covariances(
            setting.model, setting.texts, list(select_parameters(setting.model, setting.layers))
        )
        given: Any = next(iter(covariances.values())) if one_layer else covariances

        def editor(
            requests: Sequence[Request], own: dict[str, float], search: ValueSearch, at_subject: bool
        ) -> AnyEditor:
            tokenizer, ends, essences = setting.tokenizer, [], []
            for request in requests:
                ends.append(subject_end(tokenizer, request["source"], request["subject"] if at_subject else ""))
                essence = f"{request['subject']} is a"  # ROME, section 3.1: what the subject is should stay
                essences.append((tokenizer(essence)["input_ids"], subject_end(tokenizer, essence, request["subject"])))
            return make(given, subject_ends=ends, essences=essences, search=search, **own)

        def with_options(at_subject: bool = True, **options: float) -> EditorFor:
            searched = {name: options.pop(name) for name in ValueSearch._fields if name in options}
            search = (ROME_SEARCH if one_layer else MEMIT_SEARCH)._replace(**searched)
            return EditorFor(partial(editor, own=options, search=search, at_subject=at_subject))

        return with_options

    return prepare


def _mend(setting: Setting) -> Callable[..., AnyEditor]:
    """MEND's network, trained on the training edits that have another wording, beside ordinary texts."""

    def trained(learning_rate: float = 1e-4) -> AnyEditor:
        mend = Mend(setting.model, setting.layers)
        rows = [request for request in setting.requests if request["paraphrases"]]
        examples = [
            MendExample(
                joint_constraint([row], setting.model),
                joint_constraint([_reworded(row, setting.tokenizer)], setting.model),
                setting.texts[index % len(setting.texts)],
            )
            for index, row in enumerate(rows)
        ]
        train_mend(mend, setting.model, examples, _MEND_STEPS, learning_rate=learning_rate, seed=setting.seed)
        return mend.build()

    return trained


def _reworded(request: Request, tokenizer: PreTrainedTokenizerBase) -> Request:
    return {**request, "input_ids": tokenizer(request["paraphrases"][0])["input_ids"]}


def _grace(setting: Setting) -> Callable[..., Callable[[], Grace]]:
    (layer,) = select_parameters(setting.model, setting.layers)
    return lambda **options: lambda: Grace(setting.model, layer, **options)


METHODS = {
    "none": Method(_nothing, ()),
    "gradient": Method(_gradient),
    "ft_l": Method(lambda setting: _within_a_box),
    "loc_ft": Method(lambda setting: loc_ft),
    "lora": Method(lambda setting: lora),
    "rome": Method(_by_subject(rome, one_layer=True), ("at_subject", *ValueSearch._fields)),
    "mend": Method(_mend),
    "ultra_edit": Method(lambda setting: UltraEdit),
    "memit": Method(_by_subject(memit, one_layer=False), ("at_subject", "covariance_weight", *ValueSearch._fields)),
    "grace": Method(_grace, ("radius", "learning_rate"), GraceEditEvaluator),
}


def subject_end(tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str) -> int:
    """The position of the token that the subject ends in; the prompt's last one where it does not name its subject."""
    start = prompt.rfind(subject) if subject else -1
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    if start < 0:
        return len(offsets) - 1
    end = start + len(subject)
    return max(index for index, (first, last) in enumerate(offsets) if first < end and last > first)
