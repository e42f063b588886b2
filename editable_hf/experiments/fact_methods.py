"""How the edits of a row of the facts table are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.baselines.fine_tuning import ft_l, loc_ft
from editable_hf.baselines.key_covariance import key_covariances
from editable_hf.baselines.lora import lora
from editable_hf.baselines.memit import memit
from editable_hf.baselines.mend import Mend, MendExample, train_mend
from editable_hf.baselines.rome import rome
from editable_hf.baselines.ultra_edit import UltraEdit
from editable_hf.core.editing import AnyEditor
from editable_hf.core.selection import select_parameters
from editable_hf.evaluation.edit_evaluator import Request
from editable_hf.evaluation.fact_edits import EditorFor, fact_constraint
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
    """A kind of edit: gives the editor for a learning rate, which is `None` for one that has none."""

    prepare: Callable[[Setting], Callable[[float | None], AnyEditor | EditorFor]]
    has_rate: bool = True


def _gradient(setting: Setting) -> Callable[[float | None], AnyEditor]:
    config = setting.config or EditorConfig()
    return lambda rate: config.build_editor(learning_rate=rate)


def _nothing(setting: Setting) -> Callable[[float | None], AnyEditor]:
    """As many columns for the network as it is."""

    def stay(model, constraint, params, max_steps):
        value = constraint(model, params)
        return params, value, [value.item()]

    return lambda rate: stay


def _baseline(make: Callable[..., AnyEditor]) -> Callable[[Setting], Callable[[float | None], AnyEditor]]:
    return lambda setting: lambda rate: make(learning_rate=rate)


def _by_subject(make: Callable[..., AnyEditor], one_layer: bool) -> Callable[[Setting], Callable[..., EditorFor]]:
    """ROME and MEMIT: they write where the subject ends, by the covariance of keys over text."""

    def prepare(setting: Setting) -> Callable[[float | None], EditorFor]:
        covariances = key_covariances(
            setting.model, setting.texts, list(select_parameters(setting.model, setting.layers))
        )
        given: Any = next(iter(covariances.values())) if one_layer else covariances

        def editor(requests: Sequence[Request]) -> AnyEditor:
            tokenizer, ends, essences = setting.tokenizer, [], []
            for request in requests:
                ends.append(subject_end(tokenizer, request["source"], request["subject"]))
                essence = f"{request['subject']} is a"  # ROME, section 3.1: what the subject is should stay
                essences.append((tokenizer(essence)["input_ids"], subject_end(tokenizer, essence, request["subject"])))
            return make(given, subject_ends=ends, essences=essences)

        return lambda rate: EditorFor(editor)

    return prepare


def _mend(setting: Setting) -> Callable[[float | None], AnyEditor]:
    """MEND's network, trained on the training edits that have another wording, beside ordinary texts."""

    def trained(rate: float | None) -> AnyEditor:
        mend = Mend(setting.model, setting.layers)
        rows = [request for request in setting.requests if request["paraphrases"]]
        examples = [
            MendExample(
                fact_constraint([row], setting.model),
                fact_constraint([_reworded(row, setting.tokenizer)], setting.model),
                setting.texts[index % len(setting.texts)],
            )
            for index, row in enumerate(rows)
        ]
        train_mend(mend, setting.model, examples, _MEND_STEPS, learning_rate=rate, seed=setting.seed)
        return mend.build()

    return trained


def _reworded(request: Request, tokenizer: PreTrainedTokenizerBase) -> Request:
    return {**request, "input_ids": tokenizer(request["paraphrases"][0])["input_ids"]}


METHODS = {
    "none": Method(_nothing, has_rate=False),
    "gradient": Method(_gradient),
    "ft_l": Method(lambda setting: lambda rate: ft_l(learning_rate=rate, max_change=rate)),
    "loc_ft": Method(_baseline(loc_ft)),
    "lora": Method(_baseline(lora)),
    "rome": Method(_by_subject(rome, one_layer=True), has_rate=False),
    "mend": Method(_mend),
    "ultra_edit": Method(_baseline(UltraEdit)),
    "memit": Method(_by_subject(memit, one_layer=False), has_rate=False),
}


def subject_end(tokenizer: PreTrainedTokenizerBase, prompt: str, subject: str) -> int:
    """The position of the token that the subject ends in; the prompt's last one where it does not name its subject."""
    start = prompt.rfind(subject) if subject else -1
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    if start < 0:
        return len(offsets) - 1
    end = start + len(subject)
    return max(index for index, (first, last) in enumerate(offsets) if first < end and last > first)
