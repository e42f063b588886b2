"""The YAML file of a translation recipe, section by section."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from editable_hf import EditableSeq2SeqTrainingArguments
from editable_hf.experiments.recipe_config import RecipeFile, sections_of


@dataclass
class DataOptions:
    """Arguments of `load_translation_data`."""

    source: str = "embedded"
    source_lang: str = "de"
    target_lang: str = "en"
    config_name: str | None = None
    revision: str | None = None
    split_names: dict[str, str] | None = None
    tokenized: bool | None = None
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None


@dataclass
class TokenizerOptions:
    """Arguments of `train_tokenizer`."""

    vocab_size: int = 10_000


@dataclass
class ModelOptions:
    """Arguments of `iwslt_transformer_config`."""

    size: str = "iwslt_de_en"
    dropout: float = 0.3
    max_length: int = 256


@dataclass
class RequestOptions:
    """How many edit requests, and how they are made (section 4.4).

    They are made with the pretrained model, which must reach `min_bleu` on 200 validation sentences: one that learned
    nothing would otherwise go through all stages to a table that says nothing.
    """

    num_train: int = 10_000
    num_validation: int = 0
    num_test: int = 1_000
    num_alternatives: int = 32
    temperature: float = 1.2
    batch_size: int = 16
    min_bleu: float = 10.0


@dataclass
class EvaluationOptions:
    """What Table 6 is measured on. All models are edited at every learning rate; rows that name none have the first.

    With `num_validation_edits` the models are compared on validation edits and sentences too, at the first rate, and
    one is chosen: of the editable models that lose at most `max_bleu_loss` to the baseline the most local one.

    `num_beams` is also what the saved models generate with by default, part of their generation config. The training
    stages therefore depend on it: another value trains all models again.
    """

    num_edits: int = 1_000
    num_sentences: int = 6_750
    num_beams: int = 5
    batch_size: int = 64
    max_steps: int = 10
    learning_rates: list[float] = field(default_factory=lambda: [1e-3, 3e-4])
    num_validation_edits: int = 0
    num_validation_sentences: int = 500
    max_bleu_loss: float = 0.3


@dataclass
class RecipeConfig:
    """One run. `training` holds for every model, `pretrain` for the first, `finetune` for all others, `editable` for
    the editable ones alone; all four are fields of `EditableSeq2SeqTrainingArguments`. `variants` names further
    editable models and what they change in `editable`."""

    output_dir: str
    seed: int
    data: DataOptions
    tokenizer: TokenizerOptions
    model: ModelOptions
    requests: RequestOptions
    evaluation: EvaluationOptions
    training: dict[str, Any]
    pretrain: dict[str, Any]
    finetune: dict[str, Any]
    editable: dict[str, Any]
    variants: dict[str, dict[str, Any]]


_SECTIONS = sections_of(RecipeConfig)
_TRAINING = ("training", "pretrain", "finetune", "editable")

_SMOKE: dict[str, dict[str, Any]] = {
    "data": {"max_train_samples": 600, "max_validation_samples": 20, "max_test_samples": 20},
    "tokenizer": {"vocab_size": 400},
    "model": {"size": "tiny"},
    "requests": {"num_train": 8, "num_test": 6, "num_alternatives": 4, "min_bleu": 0.0},
    "evaluation": {"num_edits": 2, "num_sentences": 10, "learning_rates": [1e-2, 5e-3]},
    # Fast enough that the model learns where sentences end: a sampled target without an end gives no request.
    "pretrain": {"max_steps": 30, "save_steps": 20, "logging_steps": 10, "learning_rate": 5e-3, "warmup_steps": 5},
    "finetune": {"max_steps": 6, "save_steps": 4, "logging_steps": 2},
}
_SMOKE_VALIDATION: dict[str, dict[str, Any]] = {
    "requests": {"num_validation": 4},
    "evaluation": {"num_validation_edits": 2, "num_validation_sentences": 10},
}


def load_config(
    config: str, output_dir: str | None = None, data: str | None = None, seed: int | None = None, smoke: bool = False
) -> RecipeConfig:
    """Reads a YAML file and applies the command line's overrides.

    Raises:
        ValueError: For an unknown section or key, naming those that exist, or what is not a section.
    """
    file = RecipeFile(config, [*_SECTIONS, *_TRAINING, "variants"])
    file.override({"data": {"source": data}})
    if smoke:
        file.override(_SMOKE)
        if file.sections["evaluation"].get("num_validation_edits"):
            file.override(_SMOKE_VALIDATION)
    parsed = file.parse(_SECTIONS)
    training = {name: file.sections[name] for name in _TRAINING}
    for name, values in training.items():
        file.check_training(f"section {name!r}", values, EditableSeq2SeqTrainingArguments)
    variants = file.sections["variants"]
    for name, values in variants.items():
        if not re.fullmatch(r"[\w.-]+", str(name)) or not isinstance(values, dict):
            raise ValueError(
                f"{config}, section 'variants': expected names of letters, digits, '.', '_' and '-', each with values "
                f"for the section 'editable', got {name!r}: {values!r:.60}."
            )
        file.check_training(f"variant {name!r}", values, EditableSeq2SeqTrainingArguments)
    wanted, made = parsed["evaluation"].num_validation_edits, parsed["requests"].num_validation
    if wanted > made:
        raise ValueError(
            f"{config}: section 'evaluation' has `num_validation_edits: {wanted}`, but section 'requests' makes "
            f"{made} requests for that; raise its `num_validation`."
        )
    options = file.run_options("runs/iwslt_de_en", output_dir, seed, smoke)
    return RecipeConfig(**options, **parsed, **training, variants=variants)
