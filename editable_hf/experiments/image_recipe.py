"""The YAML file and the command line of the image recipes: cifar10.py, imagenet.py, natural_adversarial.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from editable_hf import EditableImageTrainingArguments
from editable_hf.core.editors import EDITORS
from editable_hf.experiments.image_parts import ImageDataOptions, ImageModelOptions
from editable_hf.experiments.recipe_config import RecipeFile, folder_name, read_config, recipe_parser, sections_of
from editable_hf.experiments.row_methods import EDITOR_FIELDS, METHOD_KEYS, Gradient, build_method

RANDOM, RANKS, ADVERSARIAL = "random", "ranks", "natural_adversarial"
ADVERSARIAL_SECTION, FIGURE_SECTION = "adversarial", "figure_2"


@dataclass
class RowOptions:
    """One row of the table: a network, and what is edited in it.

    Args:
        train: Train the starting network further, as `training` says. Without it the row shows the starting network.
        extra: Units of the extra block that is put in first (section 4.3: 4096); 0 for none.
        requests: What it is trained to be edited for: none (base loss alone), random classes, classes matched by rank
            (ranks) or natural adversarial examples (natural_adversarial). The last two are for that recipe.
        layers: What edits may move.
        network: The row whose network is edited here too, with another editor or on other layers.
        compare_to: The row that the drawdown is divided by, or several.
        method: How edits are made; its keys stand beside the others in the file, and so do those of `training`.
        training: Fields of `EditableImageTrainingArguments` for this row.
    """

    train: bool = True
    extra: int = 0
    requests: str = "none"
    layers: list[str] = field(default_factory=lambda: ["chain3"])
    network: str | None = None
    compare_to: list[str] = field(default_factory=list)
    method: Any = field(default_factory=Gradient)
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        kinds = ("none", RANDOM, RANKS, ADVERSARIAL)
        if self.requests not in kinds:
            raise ValueError(f"`requests` must be one of {', '.join(kinds)}, got {self.requests!r}.")
        if isinstance(self.extra, bool) or not isinstance(self.extra, int) or self.extra < 0:
            raise ValueError(f"`extra` must be a number of units, 4096 in the paper, or 0, got {self.extra!r}.")
        for name in ("layers", "compare_to"):
            if isinstance(getattr(self, name), str):
                setattr(self, name, [getattr(self, name)])
        if self.training.get("editor", "gd") not in EDITORS:
            raise ValueError(f"`editor` must be one of {', '.join(EDITORS)}, got {self.training['editor']!r}.")
        if "edit_layers" in self.training:
            raise ValueError("Expected `layers`, which are trained and measured alike, but got `edit_layers`.")
        if self.network is not None and (not self.train or self.extra or self.requests != "none"):
            raise ValueError(f"`network: {self.network}` has been made already: leave out train, extra and requests.")
        if not self.train and self.requests != "none":
            raise ValueError(f"`train: false` leaves nothing that `requests: {self.requests}` could be used for.")
        unused = sorted(set(self.training) - EDITOR_FIELDS)
        if unused and (self.network is not None or not self.train):
            raise ValueError(f"Nothing is trained for this row, so {unused} would have no effect; remove them.")
        self.method.check(self)


@dataclass
class EvaluationOptions:
    """What the rows are measured on.

    Every row's alpha is chosen on validation images, where enough edits succeed for the least drawdown, out of its
    own (learned, or `edit_learning_rate`) and `learning_rates`, which lists more of them by editor.
    """

    num_edits: int = 1_000
    max_steps: int = 10
    batch_size: int = 250
    num_workers: int = 0
    learning_rates: dict[str, list[float]] = field(default_factory=dict)
    num_validation_edits: int = 100
    num_validation_images: int = 2_000
    min_success_rate: float = 0.95

    def __post_init__(self):
        wrong = sorted(set(self.learning_rates) - set(EDITORS))
        if wrong:
            raise ValueError(f"`learning_rates` must be by editor ({', '.join(EDITORS)}), got {wrong}.")


@dataclass
class AdversarialOptions:
    """Section 4.3.1: natural adversarial examples, and what else is measured with them.

    Args:
        source: Their folder (`imagenet-a`), with a folder for each class; or `mistakes`, for the validation images
            that the starting network gets wrong.
        num_evaluation: How many are edited for the tables; the others may be trained on.
        sequence_rows: Rows that are edited again and again.
        sequence_length: Edits in a row.
        sequence_runs: Repetitions.
        generalization_rows: Rows whose edits are tried on the nearest test images.
        num_augmentations: Of each image of such a pair.
        embedding: Hub id or folder of the vision model whose pooled features say what is near; by default the starting
            network's. The paper has InceptionV3.
    """

    source: str = "mistakes"
    num_evaluation: int = 1_000
    sequence_rows: list[str] = field(default_factory=list)
    sequence_length: int = 10
    sequence_runs: int = 10
    generalization_rows: list[str] = field(default_factory=list)
    num_augmentations: int = 5
    embedding: str | None = None


@dataclass
class FigureOptions:
    """Figure 2: the rows (with a gradient editor) whose edits are described, and how many edits of test images."""

    rows: list[str] = field(default_factory=list)
    num_edits: int = 4_500


@dataclass
class ImageRecipeConfig:
    """One run.

    Args:
        training: For every network.
        pretrain: What the starting network is trained with first, on top of that (left out: it is the model's weights,
            or random ones, as they are).
        models: The rows of the table by name.
        rows: Those that the command line asks for, all if empty.
    """

    output_dir: str
    seed: int
    data: ImageDataOptions
    model: ImageModelOptions
    evaluation: EvaluationOptions
    adversarial: AdversarialOptions
    figure_2: FigureOptions
    training: dict[str, Any]
    pretrain: dict[str, Any]
    models: dict[str, RowOptions]
    rows: list[str] = field(default_factory=list)


_SECTIONS = sections_of(ImageRecipeConfig)
_NAMES = (*_SECTIONS, "training", "pretrain", "models")
_OWN = (ADVERSARIAL_SECTION, FIGURE_SECTION)  # sections of one recipe
_SMOKE: dict[str, dict[str, Any]] = {
    "data": {"max_train_samples": 100, "max_validation_samples": 40, "max_test_samples": 40},
    "evaluation": {"num_edits": 3, "num_validation_edits": 2, "num_validation_images": 20, "max_steps": 3},
    "adversarial": {"num_evaluation": 4, "sequence_length": 2, "sequence_runs": 2},
    "figure_2": {"num_edits": 40},
    "training": {"max_steps": 2, "per_device_train_batch_size": 16, "edit_max_steps": 2, "dataloader_num_workers": 0},
}
_SMOKE_METHODS = {"num_trials": 2, "num_fisher_images": 20}


def load_config(
    config: str,
    *,
    own_section: str | None = None,
    output_dir: str | None = None,
    smoke: bool = False,
    seed: int | None = None,
    rows: list[str] | None = None,
    data: str | None = None,
    weights: str | None = None,
    natural_adversarial: str | None = None,
    embedding: str | None = None,
) -> ImageRecipeConfig:
    """Reads a YAML file and applies the command line's overrides.

    Args:
        config: The file.
        own_section: The section that only this recipe's files may have, if there is one.
        output_dir: Instead of the file's.
        smoke: Sizes with which all runs within seconds.
        seed: Instead of the file's.
        rows: Only these of the file's rows.
        data: Instead of the file's `source`.
        weights: Instead of the file's, and instead of pretraining.
        natural_adversarial: Instead of the file's `source`.
        embedding: Instead of the file's.

    Raises:
        ValueError: For an unknown section, key or row, naming those that exist, or what is not a section.
    """
    file = RecipeFile(config, [name for name in _NAMES if name not in _OWN or name == own_section])
    file.override({"data": {"source": data}, "model": {"weights": weights}})
    if own_section == ADVERSARIAL_SECTION:
        file.override({ADVERSARIAL_SECTION: {"source": natural_adversarial, "embedding": embedding}})
    pretrain = {} if weights is not None else file.sections["pretrain"]
    if smoke:
        file.override({name: values for name, values in _SMOKE.items() if name in file.sections})
        pretrain = pretrain and {**pretrain, **_SMOKE["training"]}
    parsed = file.parse({name: kind for name, kind in _SECTIONS.items() if name in file.sections})
    parsed = {name: parsed.get(name) or kind() for name, kind in _SECTIONS.items()}
    for name in ("training", "pretrain"):
        file.check_training(f"section {name!r}", file.sections[name], EditableImageTrainingArguments)
    models = _rows(file, own_section == ADVERSARIAL_SECTION, smoke)
    _check_references(config, models, rows or [], parsed["adversarial"], parsed["figure_2"])
    run = file.run_options("runs/images", output_dir, seed, smoke)
    training = file.sections["training"]
    return ImageRecipeConfig(**run, **parsed, training=training, pretrain=pretrain, models=models, rows=rows or [])


def _check_references(
    config: str,
    models: Mapping[str, RowOptions],
    rows: list[str],
    adversarial: AdversarialOptions,
    figure_2: FigureOptions,
) -> None:
    _check_names(config, "--rows", rows, models)
    edited = {"figure_2": figure_2.rows, "sequence_rows": adversarial.sequence_rows}
    for key, names in {**edited, "generalization_rows": adversarial.generalization_rows}.items():
        _check_names(config, key, names, models)
        others = [name for name in names if type(models[name].method) is not Gradient]
        if others:
            raise ValueError(f"{config}, {key}: expected rows with `method: gradient`, but got {others}.")


def _rows(file: RecipeFile, adversarial: bool, smoke: bool) -> dict[str, RowOptions]:
    config, section = file.path, file.sections["models"]
    if not section:
        raise ValueError(f"{config}: `models` must give at least one row, e.g. `pretrained: {{train: false}}`.")
    own = set(RowOptions.__dataclass_fields__) - {"training", "method"}
    known = {*own, *METHOD_KEYS, "method"}
    rows: dict[str, RowOptions] = {}
    for name, values in section.items():
        if not isinstance(values, dict):
            raise ValueError(f"{config}: row {name!r} of `models` must hold keys and values, but holds {values!r}.")
        training = {key: value for key, value in values.items() if key not in known}
        file.check_training(f"row {name!r}", training, EditableImageTrainingArguments, others=known)
        try:
            method_values = {key: value for key, value in values.items() if key in METHOD_KEYS}
            method = build_method(values.get("method", Gradient.name), method_values)
            common = {key: value for key, value in values.items() if key in own}
            row = RowOptions(**common, method=method, training=training)
            if row.requests in (RANKS, ADVERSARIAL) and not adversarial:
                raise ValueError(f"`requests: {row.requests}` needs recipes/natural_adversarial.py.")
        except ValueError as error:
            raise ValueError(f"{config}, row {name!r}: {error}") from error
        _check_names(config, f"row {name!r}", [*filter(None, [row.network]), *row.compare_to], rows)
        if row.network is not None and rows[row.network].network is not None:
            raise ValueError(f"{config}, row {name!r}: `network` must be a row with a network of its own.")
        if folder_name(name) in map(folder_name, rows):
            raise ValueError(f"{config}: two rows would leave their results in 'edits-{folder_name(name)}'.")
        for key, most in _SMOKE_METHODS.items() if smoke else ():
            if hasattr(method, key):
                setattr(method, key, min(getattr(method, key), most))
        if smoke and row.train and row.network is None:
            row.training |= _SMOKE["training"]
        rows[name] = row
    return rows


def _check_names(config: str, where: str, names: list[str], rows: Mapping[str, RowOptions]) -> None:
    wrong = [name for name in names if name not in rows]
    if wrong:
        raise ValueError(f"{config}, {where}: expected names of rows, {list(rows)} so far, but got {wrong}.")


def parse_args(description: str, own_section: str | None = None) -> ImageRecipeConfig:
    """The configuration that the command line asks for."""
    parser = recipe_parser(description)
    parser.add_argument("--weights", help="checkpoint folder, hub id or published .th file, instead of pretraining")
    if own_section == ADVERSARIAL_SECTION:
        parser.add_argument("--natural_adversarial", help="folder with the examples, instead of the config's")
        parser.add_argument("--embedding", help="hub id or folder of the model that says what is near")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="only these rows of the config's `models`")
    return read_config(parser, load_config, {**vars(parser.parse_args()), "own_section": own_section})
