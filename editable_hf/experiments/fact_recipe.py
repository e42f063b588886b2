"""The YAML file of the facts recipe, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from editable_hf import EditableCausalLMTrainingArguments
from editable_hf.experiments.fact_methods import METHODS
from editable_hf.experiments.recipe_config import NetworksConfig, RecipeFile, sections_of

EMBEDDED = "embedded"


@dataclass
class DataOptions:
    """The facts that are edited.

    Args:
        source: `embedded`, for the made-up facts that come with the package; or the folder of the files named below.
        train: Facts to train editability on: a file of CounterFact, zsRE or WikiBigEdit.
        validation: Facts that everything is chosen with.
        test: Facts that are reported on; those whose prompt is in the two others are left out.
        train_text: Text to train on, a plain text file of which each line of ten words or more is used.
        test_text: Held-out text, for perplexity.
        num_train_texts: Lines of the former at most.
        num_test_texts: Of the latter.
        text_length: Most tokens of a line to train on; the rest is not used. Held-out lines are whole.
    """

    source: str = EMBEDDED
    train: str = ""
    validation: str = ""
    test: str = ""
    train_text: str = ""
    test_text: str = ""
    num_train_texts: int = 20_000
    num_test_texts: int = 200
    text_length: int = 64

    def __post_init__(self):
        files = ("train", "validation", "test", "train_text", "test_text")
        given = [name for name in files if getattr(self, name)]
        if given != ([] if self.source == EMBEDDED else list(files)):
            raise ValueError(
                f"`source` is {EMBEDDED!r} and no file is named, or it is a folder with files that are all named "
                f"({', '.join(files)}); got source={self.source!r} with {', '.join(given) or 'none'}."
            )


@dataclass
class ModelOptions:
    """The language model: `weights` (a folder or hub id), or a small Llama that learns the embedded facts first."""

    weights: str | None = None
    vocab_size: int = 6_000
    hidden_size: int = 128
    intermediate_size: int = 256
    num_layers: int = 4
    num_heads: int = 4


@dataclass
class RequestOptions:
    """How many edits of each kind, and what a model must know of the facts before they are edited.

    Args:
        num_train: Same.
        num_validation: Same.
        num_test: Same.
        num_alternatives: Beam size for what the target must beat.
        min_recall: Share of 500 facts that the pretrained model must know; only where it learned them here.
    """

    num_train: int = 1_000
    num_validation: int = 20
    num_test: int = 200
    num_alternatives: int = 8
    min_recall: float = 0.95


@dataclass
class EvaluationOptions:
    """What is measured for every row.

    Args:
        num_edits: Test requests that are edited one at a time, and at most as many in a row.
        at_once: Sizes of edits that serve several requests.
        num_at_once: Requests for each size; a last group that is not whole is left out.
        in_a_row: After how many edits in a row to measure.
        num_unrelated: Questions about other facts that should stay.
        min_success_rate: Reliability that the chosen learning rate must have on validation edits.
        batch_size: Prompts decoded together.
    """

    num_edits: int = 200
    at_once: list[int] = field(default_factory=lambda: [5, 25, 75, 125])
    num_at_once: int = 125
    in_a_row: list[int] = field(default_factory=lambda: [1, 10, 100])
    num_unrelated: int = 20
    min_success_rate: float = 0.95
    batch_size: int = 64


@dataclass
class RowOptions:
    """One row of the table.

    Args:
        network: The model that is edited: `pretrained`, or one of `models`.
        method: How, see [`METHODS`].
        layers: What an edit may move.
        max_steps: Steps at most.
        max_rounds: Rounds at most, see [`FactEditEvaluator`].
        grid: Values of the method's options, each a list: all combinations are tried on validation edits. An editable
            network's own `learning_rate` is among them.
        at_once: Measure edits that serve several requests, too.
        in_a_row: Measure edits in a row, too.
    """

    network: str = "pretrained"
    method: str = "gradient"
    layers: list[str] = field(default_factory=lambda: ["last_decoder_mlp"])
    max_steps: int = 10
    max_rounds: int = 1
    grid: dict[str, list[float]] = field(default_factory=dict)
    at_once: bool = True
    in_a_row: bool = True

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if isinstance(self.layers, str):
            self.layers = [self.layers]
        known = METHODS[self.method].options
        if unknown := [name for name in self.grid if name not in known]:
            raise ValueError(
                f"`method: {self.method}` has no option {', '.join(unknown)} to try, only: {', '.join(known)}."
            )
        if empty := [name for name, values in self.grid.items() if not isinstance(values, list) or not values]:
            raise ValueError(f"`grid` must hold lists of values, such as `{empty[0]}: [1.0e-3]`.")


@dataclass
class FactRecipeConfig(NetworksConfig):
    """Models change fields of `EditableCausalLMTrainingArguments`, and have `edits: true` to train with requests."""

    data: DataOptions
    model: ModelOptions
    requests: RequestOptions
    evaluation: EvaluationOptions
    rows: dict[str, RowOptions]


_SECTIONS = sections_of(FactRecipeConfig)
_SMOKE: dict[str, dict[str, Any]] = {
    "model": {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2},
    "requests": {"num_train": 4, "num_validation": 2, "num_test": 4, "num_alternatives": 2, "min_recall": 0.0},
    "evaluation": {"num_edits": 4, "at_once": [2], "num_at_once": 4, "in_a_row": [1, 3], "num_unrelated": 2},
    "data": {"num_train_texts": 200, "num_test_texts": 10},
    "training": {"max_steps": 2, "per_device_train_batch_size": 8},
    "pretrain": {"max_steps": 4},
}


def load_config(
    config: str,
    output_dir: str | None = None,
    data: str | None = None,
    weights: str | None = None,
    seed: int | None = None,
    smoke: bool = False,
) -> FactRecipeConfig:
    """Reads a YAML file and applies the command line's overrides.

    Raises:
        ValueError: For an unknown section or key, naming those that exist, or what is not a section.
    """
    file = RecipeFile(config, [*_SECTIONS, "training", "pretrain", "models", "rows"])
    file.override({"data": {"source": data}, "model": {"weights": weights}})
    if smoke:
        file.override(_SMOKE)
    parsed = file.parse(_SECTIONS)
    networks = file.networks_and_rows(EditableCausalLMTrainingArguments, "edits", RowOptions)
    options = file.run_options("runs/facts", output_dir, seed, smoke)
    return FactRecipeConfig(**options, **parsed, **networks)
