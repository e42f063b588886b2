"""How the edits of a row are made, a class for each method: its own keys of the file, and what is measured for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from accelerate import PartialState
from safetensors.torch import load_file, save
from transformers import PreTrainedModel

from editable_hf import EditorConfig
from editable_hf.baselines.cnp import CNPForImageClassification
from editable_hf.baselines.dknn import DkNNForImageClassification, flip_labels
from editable_hf.baselines.ewc import EWC_WEIGHTS, LABELS, diagonal_fisher, ewc, normalize_fisher
from editable_hf.baselines.rank_one import feature_moment, rank_one
from editable_hf.core.editing import AnyEditor
from editable_hf.core.editors import Editor, Params
from editable_hf.data.atomic import write_atomically
from editable_hf.experiments.image_parts import ImageSets
from editable_hf.experiments.tuning import build_editor, tune_editor
from editable_hf.models.extra_block import find_head

if TYPE_CHECKING:
    from editable_hf.experiments.image_recipe import ImageRecipeConfig, RowOptions

Row = dict[str, Any]
Validate = Callable[..., Row]
EDITOR_FIELDS = {"editor", "edit_learning_rate"}
_GRADIENT_EDITOR_FIELDS = {*EDITOR_FIELDS, "learn_edit_learning_rate"}


class Subject(NamedTuple):
    """What is edited for a row, how, and what its table says about that.

    Attributes:
        model: Same.
        layers: What an edit moves.
        editor: Same.
        entries: Of the row, the editor's name and hyperparameters among them.
    """

    model: PreTrainedModel
    layers: list[str]
    editor: AnyEditor
    entries: Row


class Setting(NamedTuple):
    """What a method can make its subject of.

    Attributes:
        config: Of the recipe.
        images: The data.
        model: The row's network.
        layers: Of the row.
        start: The gradient editor that the row names or was trained with.
        validate: What an editor does on validation edits and images.
        folder: Of the row's results.
    """

    config: ImageRecipeConfig
    images: ImageSets
    model: PreTrainedModel
    layers: list[str]
    start: EditorConfig
    validate: Validate
    folder: Path


class _Method(ABC):
    """What a row needs of its method; a subclass is a dataclass of the keys that it has in the file."""

    def check(self, row: RowOptions) -> None:  # noqa: B027
        """Raises `ValueError` where the method does not fit the rest of its row."""

    def network(self, model: PreTrainedModel, layers: list[str], images: ImageSets) -> PreTrainedModel:
        """What is trained for a row."""
        return model

    def training(self, options: dict[str, Any]) -> dict[str, Any]:
        """The training arguments with which it is trained."""
        return options

    @abstractmethod
    def subject(self, setting: Setting) -> Subject:
        """What is measured for a row."""


@dataclass
class Gradient(_Method):
    """The gradient editor alone.

    Args:
        num_trials: Trials of a search for the editor's hyperparameters (with ewc also the penalty's weight), as for
            Table 1. 0 tries the alphas of `learning_rates` instead.
    """

    name: str = field(default="gradient", init=False)
    num_trials: int = 0

    def subject(self, setting: Setting) -> Subject:
        made = _tuned(setting, self.num_trials, None) if self.num_trials else _best_rate(setting)
        return Subject(setting.model, setting.layers, *made)


@dataclass
class Ewc(Gradient):
    """The gradient editor with Elastic Weight Consolidation.

    Args:
        fisher_labels: The Fisher information is that of labels drawn from the network (sampled) or of the data's own
            (true, the empirical Fisher).
        num_fisher_images: Training images that it is estimated on.
    """

    name: str = field(default="ewc", init=False)
    fisher_labels: str = "sampled"
    num_fisher_images: int = 5_000

    def check(self, row: RowOptions) -> None:
        if self.fisher_labels not in LABELS:
            raise ValueError(f"`fisher_labels` must be one of {', '.join(LABELS)}, got {self.fisher_labels!r}.")
        if not self.num_trials:
            raise ValueError("`method: ewc` needs `num_trials`, e.g. 24: its penalty's weight must be searched for.")

    def subject(self, setting: Setting) -> Subject:
        config, images, model, layers, *_, folder = setting
        path = folder / "fisher.safetensors"
        with PartialState().main_process_first():
            if not path.exists():
                count = min(self.num_fisher_images, len(images.train_plain))
                how = {"labels": self.fisher_labels, "num_examples": count, "seed": config.seed}
                write_atomically(path, save(diagonal_fisher(model, images.train_plain, layers, **how)))
        fisher = normalize_fisher(load_file(path, device=str(model.device)))
        return Subject(model, layers, *_tuned(setting, self.num_trials, fisher))


class _WithoutGradient(_Method):
    def check(self, row: RowOptions) -> None:
        if set(row.training) & _GRADIENT_EDITOR_FIELDS:
            raise ValueError(f"`method: {self.name}` has no gradient editor: remove editor and alpha.")


class _Untrained(_WithoutGradient):
    def check(self, row: RowOptions) -> None:
        super().check(row)
        if (row.train or row.extra) and row.network is None:
            raise ValueError(
                f"`method: {self.name}` trains nothing: say `train: false`, or which row's `network` it uses."
            )


@dataclass
class Dknn(_Untrained):
    """Deep nearest neighbors (Table 3), where `layers` give the embeddings; `neighbors` is k, in each layer."""

    name: str = field(default="dknn", init=False)
    neighbors: int = 10

    def subject(self, setting: Setting) -> Subject:
        references = setting.images.train_plain
        model = DkNNForImageClassification.from_backbone(setting.model, references, setting.layers, self.neighbors)
        entries = {"editor": "flip labels", "hyperparameters": {}, "memory": model.memory}
        return Subject(model, ["labels"], flip_labels(), entries)


@dataclass
class Cnp(_WithoutGradient):
    """A condition vector (Table 3) that is added to the chain in `layers`, with an encoder that is trained."""

    name: str = field(default="cnp", init=False)

    def check(self, row: RowOptions) -> None:
        super().check(row)
        if row.requests == "none" or len(row.layers) != 1 or row.extra:
            raise ValueError("`method: cnp` needs `requests`, to train its encoder with, and one chain in `layers`.")

    def network(self, model: PreTrainedModel, layers: list[str], images: ImageSets) -> PreTrainedModel:
        size = images.test[0]["pixel_values"].shape[-1]
        return CNPForImageClassification.from_backbone(model, *layers, image_size=size)

    def training(self, options: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in options.items() if key not in _GRADIENT_EDITOR_FIELDS}
        return {**kept, "edit_layers": ["condition"]}

    def subject(self, setting: Setting) -> Subject:
        entries = {"editor": "condition vector", "hyperparameters": {}}
        return Subject(setting.model, ["condition"], setting.model.editor.build(), entries)


@dataclass
class RankOne(_Untrained):
    """A closed form for the last linear layer; `num_fisher_images` training images give the moment of its features."""

    name: str = field(default="rank_one", init=False)
    num_fisher_images: int = 5_000

    def check(self, row: RowOptions) -> None:
        super().check(row)
        if row.layers != ["head"]:
            raise ValueError(
                f"`method: rank_one` edits the last linear layer: expected `layers: [head]`, got {row.layers}."
            )

    def subject(self, setting: Setting) -> Subject:
        model, images = setting.model, setting.images.train_plain
        count = min(self.num_fisher_images, len(images))
        editor = rank_one(feature_moment(model, images, num_examples=count, seed=setting.config.seed))
        return Subject(model, [f"{find_head(model)}.weight"], editor, {"editor": "rank one", "hyperparameters": {}})


METHODS = {kind.name: kind for kind in (Gradient, Ewc, Dknn, Cnp, RankOne)}
METHOD_KEYS = {key for kind in METHODS.values() for key in kind.__dataclass_fields__} - {"name"}


def build_method(name: str, values: dict[str, Any]) -> _Method:
    """The method of that name with these of its keys.

    Raises:
        ValueError: For an unknown method, a key of another one, or a number below 1.
    """
    if name not in list(METHODS):  # a list or a mapping has no hash
        raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {name!r}.")
    own = [key for key in METHODS[name].__dataclass_fields__ if key != "name"]
    for key, value in values.items():
        if key not in own:
            raise ValueError(f"`{key}` is no option of `method: {name}`; it has {', '.join(own) or 'none'}.")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"`{key}` must be at least 1, got {value}.")
    return METHODS[name](**values)


def _best_rate(setting: Setting) -> tuple[Editor, Row]:
    """The editor with its own alpha or another of the file's, and what each did."""
    options, start, tried = setting.config.evaluation, setting.start, []
    own = float(f"{start.hyperparameters['learning_rate']:.6g}")  # learned ones have float32's digits
    rates = sorted({own, *options.learning_rates.get(start.editor, ())})
    for rate in rates if len(rates) > 1 else ():
        row = setting.validate(start.build_editor(learning_rate=rate), f"alpha{rate:g}")
        tried.append({"learning_rate": rate, "drawdown": row["drawdown"], "success_rate": row["success_rate"]})

    def rank(trial: dict[str, float]) -> tuple[float, float]:
        return max(0.0, options.min_success_rate - trial["success_rate"]), trial["drawdown"]

    best = min(tried, key=rank)["learning_rate"] if tried else rates[0]
    hyperparameters = {**start.hyperparameters, "learning_rate": best}
    entries = {"editor": start.editor, "hyperparameters": hyperparameters, "tried": tried}
    return start.build_editor(learning_rate=best), entries


def _tuned(setting: Setting, num_trials: int, fisher: Params | None) -> tuple[Editor, Row]:
    """The editor with all its hyperparameters as for Table 1, the weight of EWC's penalty among them."""
    editor, config = setting.start.editor, setting.config
    wrap = None if fisher is None else partial(ewc, fisher=fisher)
    tuned = tune_editor(
        setting.validate,
        editor,
        storage=setting.folder / "studies.db",
        study_name="hyperparameters",
        num_trials=num_trials,
        min_success_rate=config.evaluation.min_success_rate,
        seed=config.seed,
        wrap=wrap,
        bounds=None if fisher is None else {"weight": EWC_WEIGHTS},
    )
    name = editor if fisher is None else f"{editor}+ewc"
    entries = {"editor": name, "hyperparameters": tuned.hyperparameters, "tuned": tuned._asdict()}
    return build_editor(editor, tuned.hyperparameters, wrap), entries
