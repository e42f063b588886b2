"""How transformers is built inside: its configurations and models, and what of a training run has no public hook."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

# Relies on `transformers.initialization` (5.21 to 5.24), whose functions leave weights alone that were loaded.
from transformers import initialization as init  # noqa: F401

# Relies on `transformers.configuration_utils.SubConfigSpec` (5.21 to 5.24), to build a configuration within another.
from transformers.configuration_utils import SubConfigSpec  # noqa: F401

# Relies on `transformers.pytorch_utils.Conv1D` (5.21 to 5.24), GPT-2's linear layer, whose weight is transposed.
from transformers.pytorch_utils import Conv1D  # noqa: F401

# Relies on `transformers.trainer.TRAINER_STATE_NAME` (5.21 to 5.24), the file that a checkpoint gets last. Written out
# here, because models need this module too and the import of `transformers.trainer` takes long.
TRAINER_STATE_NAME = "trainer_state.json"


def attention_of(config: PreTrainedConfig) -> str | None:
    """Which implementation of attention a model runs with, such as "eager"; `None` if that is left open.

    Relies on `transformers.PreTrainedConfig._attn_implementation` (5.21 to 5.24): public is only setting it.
    """
    return config._attn_implementation


def take_attention(config: PreTrainedConfig, from_config: PreTrainedConfig) -> None:
    """Gives a configuration, and those within it, the attention of another.

    Relies on `transformers.PreTrainedConfig._attn_implementation` (5.21 to 5.24): `set_attn_implementation` would ask
    the model around the one that has the attention.
    """
    config._attn_implementation = from_config._attn_implementation


def any_attention(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Declares that a class of models can have every attention, because the model within it decides.

    Relies on `transformers.PreTrainedModel._supports_sdpa`, `transformers.PreTrainedModel._supports_flash_attn`,
    `transformers.PreTrainedModel._supports_flex_attn` and
    `transformers.PreTrainedModel._supports_attention_backend` (5.21 to 5.24).
    """
    model_class._supports_sdpa = model_class._supports_flash_attn = True
    model_class._supports_flex_attn = model_class._supports_attention_backend = True
    return model_class


def may_miss_batch_counters(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """Declares that weights without BatchNorm's counter of batches load without a warning.

    Relies on `transformers.PreTrainedModel._keys_to_ignore_on_load_missing` (5.21 to 5.24).
    """
    model_class._keys_to_ignore_on_load_missing = [r"num_batches_tracked"]
    return model_class


def leave_out_of_weight_files(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Keeps entries of the state dict out of all weight files that are saved of this model.

    Relies on `transformers.PreTrainedModel._keys_to_ignore_on_save` (5.21 to 5.24).
    """
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *names}


def sinusoidal_tables(model: nn.Module) -> list[nn.Embedding]:
    """The tables of sine positions that a model holds as embeddings.

    Relies on their classes' names ending like that of
    `transformers.models.marian.modeling_marian.MarianSinusoidalPositionalEmbedding` (5.21 to 5.24), which is all that
    those of Marian, Pegasus and FSMT have in common.
    """
    named = (each for each in model.modules() if type(each).__name__.endswith("SinusoidalPositionalEmbedding"))
    return [each for each in named if isinstance(each, nn.Embedding)]


class StartsWeights:
    """Lets a model say which values its new weights start at. The first base class of a `PreTrainedModel`.

    Relies on `transformers.PreTrainedModel._init_weights` being called for each module with new weights (5.21 to
    5.24).
    """

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        self.start_weights(module)

    def start_weights(self, module: nn.Module) -> None:
        """Called for each module after the usual values; within, only [`init`] leaves loaded weights alone."""


class TrainerHooks:
    """Hooks of a `Trainer` for what it writes and loads. A base class before `Trainer`; overrides call `super()`.

    Relies on `transformers.Trainer._save`, `transformers.Trainer._save_checkpoint`,
    `transformers.Trainer._get_output_dir`, `transformers.Trainer._save_rng_state`,
    `transformers.Trainer._load_from_checkpoint`, `transformers.Trainer._load_best_model` and
    `transformers.Trainer._run_epoch` (5.21 to 5.24).
    """

    def write_model(self, folder: str, state_dict: dict[str, Any] | None) -> None:
        """Writes all files of a model to `folder`, for a checkpoint as for `save_model`."""
        super()._save(folder, state_dict)

    def checkpoint_guard(self, folder: Path) -> AbstractContextManager:
        """Surrounds the writing of a whole checkpoint to `folder`."""
        return nullcontext()

    def process_state_written(self) -> None:
        """Called on each process that has written its own part of a checkpoint; the trainer's state comes next."""

    def weights_loaded(self, folder: str) -> None:
        """Called when the model has the weights of the checkpoint in `folder`, to resume or as the best one."""

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        self.write_model(output_dir or self.args.output_dir, state_dict)

    def _save_checkpoint(self, model, trial) -> None:
        with self.checkpoint_guard(Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.process_state_written()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.weights_loaded(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.weights_loaded(self.state.best_model_checkpoint)

    def _run_epoch(self, **options) -> None:
        # Otherwise one more update is made on resuming from the last checkpoint, if an epoch is not over.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**options)
