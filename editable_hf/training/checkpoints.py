"""Checkpoints of a training run that a kill or a full disk leaves whole, and continuing from the last of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from editable_hf.seams.transformers_seam import TRAINER_STATE_NAME, TrainerHooks

_STAGING = ".saving"
# A folder without either of them holds no weights, and loading from it fails with a message.
_ENTRIES = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The last checkpoint in `folder` that training can be resumed from; `None` without any.

    The trainer's state is written last. A checkpoint without it, or with a part of it, was cut short by a kill, which
    `get_last_checkpoint` of transformers does not look at.
    """
    whole = [path for path in Path(folder).glob("checkpoint-*") if _is_json(path / TRAINER_STATE_NAME)]
    last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    return None if last is None else str(last)


def train_to(trainer: Trainer, folder: Path) -> None:
    """Trains on from the last whole checkpoint, if a killed run left one, and saves the model in `folder`."""
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(trainer.args.output_dir))
    trainer.save_model(str(folder))
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))


class WholeCheckpoints(TrainerHooks):
    """Makes a `Trainer` save so that the checkpoint before stays loadable until the new one is on disk, and resume.

    The first of a trainer's base classes. Where saving fails, such as on a full disk, training can be resumed from
    [`last_whole_checkpoint`].
    """

    def write_model(self, folder: str, state_dict: dict[str, Any] | None) -> None:
        if not self.args.should_save:
            return super().write_model(folder, state_dict)
        with replaced_at_once(folder) as staging:
            super().write_model(str(staging), state_dict)

    @contextmanager
    def checkpoint_guard(self, folder: Path) -> Iterator[None]:
        try:
            with super().checkpoint_guard(folder):
                yield
        except Exception:
            if not _is_json(folder / TRAINER_STATE_NAME):
                shutil.rmtree(folder, ignore_errors=True)  # `resume_from_checkpoint=True` would take it for whole
            raise

    def process_state_written(self) -> None:
        super().process_state_written()
        # Each process has its own; the trainer's state, which is next, says that all are there.
        self.accelerator.wait_for_everyone()

    def weights_loaded(self, folder: str) -> None:
        super().weights_loaded(folder)
        # Weights of some kinds (ViT, experts) are saved under names of older releases, which only `from_pretrained`
        # reads; Trainer left them out with a warning (transformers issue 43701). To go when it does not any more.
        if _saved_names(Path(folder)) - set(self.model.state_dict()):
            saved = type(self.model).from_pretrained(folder, config=self.model.config)
            self.model.load_state_dict(saved.state_dict(), strict=False)


@contextmanager
def replaced_at_once(folder: str | Path) -> Iterator[Path]:
    """Gives an empty folder to save a model in; what it then holds replaces that of `folder` by renaming.

    Whatever happens before all of it is on disk, `folder` stays as it was. While the files are renamed it has no
    weights, which come last: reading it then, or after a kill right then, fails and never mixes two models.
    """
    folder = Path(folder)
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)  # a killed save's
    try:
        staging.mkdir(parents=True)
        yield staging
        _move_into(folder, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into(folder: Path, staging: Path) -> None:
    files = [path.relative_to(staging) for path in staging.rglob("*") if path.is_file()]
    if any(str(file) in _ENTRIES for file in files):
        for old in (*(folder / name for name in _ENTRIES), *folder.glob("model-*-of-*.safetensors")):
            old.unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: str(file) in _ENTRIES):
        folder.joinpath(file.parent).mkdir(parents=True, exist_ok=True)
        (staging / file).replace(folder / file)


def _saved_names(folder: Path) -> set[str]:
    """What the weights in a checkpoint are called; nothing where it holds an adapter's alone."""
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        return set(json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))["weight_map"])
    if not (folder / SAFE_WEIGHTS_NAME).exists():
        return set()
    with safe_open(folder / SAFE_WEIGHTS_NAME, "pt") as weights:
        return set(weights.keys())


def _is_json(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return False
