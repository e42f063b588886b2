"""The YAML file of the terms recipe, section by section."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editable_hf import EditableSeq2SeqTrainingArguments
from editable_hf.experiments.recipe_config import NetworksConfig, RecipeFile, sections_of
from editable_hf.experiments.term_methods import METHODS
from editable_hf.experiments.translation_recipe import DataOptions, ModelOptions, TokenizerOptions

REQUESTS = ("terms", "sentences")


@dataclass
class TermOptions:
    """The glossary, and the sentences that use its terms.

    Terms that some sentence can be edited for play their parts in the order of the file: those that are measured, then
    those that rates are chosen with; all others are for training.

    Args:
        glossary: File that [`read_glossary`] takes, beside the configuration.
        num_sentences: Training pairs that no network is trained on: there the terms are looked for.
        num_unseen: Sentences of a term that are never edited for, at most.
        num_test: Terms that are measured.
        num_validation: Terms that rates are chosen with.
        num_requests: Sampled translations of training sentences, for networks with `requests: sentences`.
        num_alternatives: Translations that the target of an edit must beat.
    """

    glossary: str = "embedded.tsv"
    num_sentences: int = 6_000
    num_unseen: int = 10
    num_test: int = 32
    num_validation: int = 4
    num_requests: int = 400
    num_alternatives: int = 16

    def __post_init__(self):
        if self.num_test < 1 or self.num_validation < 1:
            raise ValueError(
                f"Expected terms to measure and to choose with, got `num_test` {self.num_test} and `num_validation` "
                f"{self.num_validation}."
            )


@dataclass
class EvaluationOptions:
    """On which test sentences a row is measured, and how they are decoded.

    Args:
        num_sentences: Test sentences; for each edit those without its terms count.
        num_beams: Beam size, which the networks are saved with.
        min_bleu: What the pretrained network must reach on 200 validation sentences.
        num_at_once: How many of the measured terms are edited for at once, too.
        max_rounds: See [`edit_terms`].
    """

    num_sentences: int = 300
    num_beams: int = 5
    min_bleu: float = 30.0
    num_at_once: int = 25
    max_rounds: int = 3


@dataclass
class RowOptions:
    """One row of the table.

    Args:
        network: The model that is to use the terms: `pretrained`, or one of `models`.
        method: How, see [`METHODS`].
        layers: What an edit may move.
        max_steps: Steps of an edit at most.
        rates: Learning rates, or boosts of constrained decoding (nats), that are tried on the validation terms.
        at_once: Measure an edit for many terms, too.
    """

    network: str = "pretrained"
    method: str = "gradient"
    layers: list[str] = field(default_factory=lambda: ["last_decoder_layer"])
    max_steps: int = 30
    rates: list[float] = field(default_factory=list)
    at_once: bool = True

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}, got {self.method!r}.")
        if METHODS[self.method].has_rate != bool(self.rates):
            wanted = "needs" if METHODS[self.method].has_rate else "has no"
            raise ValueError(f"`method: {self.method}` {wanted} `rates`, got {self.rates}.")


@dataclass
class TermRecipeConfig(NetworksConfig):
    """Models change fields of `EditableSeq2SeqTrainingArguments`, and have `requests`, `terms` or `sentences`, to
    train with edits of that kind."""

    data: DataOptions
    tokenizer: TokenizerOptions
    model: ModelOptions
    terms: TermOptions
    evaluation: EvaluationOptions
    rows: dict[str, RowOptions]


_SECTIONS = sections_of(TermRecipeConfig)
_SMOKE: dict[str, dict[str, Any]] = {
    "data": {"max_train_samples": 2_000, "max_validation_samples": 20, "max_test_samples": 20},
    "tokenizer": {"vocab_size": 400},
    "model": {"size": "tiny"},
    "terms": {"num_sentences": 800, "num_unseen": 2, "num_test": 2, "num_validation": 1}
    | {"num_requests": 4, "num_alternatives": 2},
    "evaluation": {"num_sentences": 10, "num_beams": 2, "min_bleu": 0.0, "num_at_once": 2, "max_rounds": 1},
    "training": {"max_steps": 2, "save_steps": 2},
    # Long enough that the model says some of the words that the glossary replaces.
    "pretrain": {"max_steps": 300, "save_steps": 150, "learning_rate": 5e-3, "warmup_steps": 20},
}


def load_config(
    config: str, output_dir: str | None = None, data: str | None = None, seed: int | None = None, smoke: bool = False
) -> TermRecipeConfig:
    """Reads a YAML file and applies the command line's overrides.

    Raises:
        ValueError: For an unknown section or key, naming those that exist, or what is not a section.
    """
    file = RecipeFile(config, [*_SECTIONS, "training", "pretrain", "models", "rows"])
    file.override({"data": {"source": data}})
    if smoke:
        file.override(_SMOKE)
    parsed = file.parse(_SECTIONS)
    parsed["terms"].glossary = str(Path(config).parent / parsed["terms"].glossary)
    networks = file.networks_and_rows(EditableSeq2SeqTrainingArguments, "requests", RowOptions)
    for name, values in networks["models"].items():
        if values.get("requests", REQUESTS[0]) not in REQUESTS:
            wrong = f"{values['requests']!r:.60}"
            raise ValueError(f"{config}, model {name!r}: `requests` must be {' or '.join(REQUESTS)}, got {wrong}.")
    options = file.run_options("runs/terms", output_dir, seed, smoke)
    return TermRecipeConfig(**options, **parsed, **networks)
