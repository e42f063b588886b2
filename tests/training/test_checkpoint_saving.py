from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors import SafetensorError
from tiny_models import marian_config
from transformers import MarianMTModel, Trainer, TrainerCallback, TrainingArguments

from editable_hf import EditableCausalLMTrainer, EditableImageTrainer, EditableSeq2SeqTrainer
from editable_hf.training.checkpoints import (
    WholeCheckpoints,
    last_whole_checkpoint,
    replaced_at_once,
    train_to,
)


class SavingTrainer(WholeCheckpoints, Trainer):
    pass


def make_trainer(folder, callbacks=None, **options):
    torch.manual_seed(0)
    usual = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
    usual |= {"max_steps": 3, "save_steps": 1, "logging_steps": 1, "per_device_train_batch_size": 2}
    rows = [{"input_ids": [3 + row, 5, 2], "labels": [4, 3 + row, 2]} for row in range(8)]
    args = TrainingArguments(str(folder), **{**usual, **options})
    data = Dataset.from_list(rows)
    return SavingTrainer(MarianMTModel(marian_config()), args, train_dataset=data, callbacks=callbacks)


def weights(folder):
    return {name: value.clone() for name, value in MarianMTModel.from_pretrained(folder).state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB, and a function that leaves so many bytes free on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")

    def leave_free(kilobytes):
        filler = folder / "filler"
        filler.unlink(missing_ok=True)
        filler.write_bytes(bytes(shutil.disk_usage(folder).free - kilobytes * 1024))

    yield folder, leave_free
    subprocess.run(["umount", str(folder)], check=True)


def test_saved_model_stays_while_the_disk_is_full(disk):
    folder, leave_free = disk
    model, trainer = folder / "model", make_trainer(folder / "run")
    trainer.save_model(str(model))
    old, size = weights(model), sum(path.stat().st_size for path in model.iterdir()) // 1024
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    with torch.no_grad():
        trainer.model.lm_head.weight.add_(1.0)
    failures = 0
    for free in range(0, size + 40, 8):
        leave_free(free)
        try:
            trainer.save_model(str(model))
            break
        except (OSError, RuntimeError, SafetensorError):
            failures += 1
            assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert equal(weights(model), trainer.model.state_dict()) and not equal(weights(model), old)
    assert names(model) == sorted(before)
    assert failures > 2


class FillDisk(TrainerCallback):
    """Leaves so little room after the first checkpoint."""

    def __init__(self, leave_free, kilobytes):
        self.fill = partial(leave_free, kilobytes)

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.fill()


@pytest.mark.parametrize("kilobytes", [0, 160])  # fails on the model, and on the optimizer
def test_training_resumes_from_the_checkpoint_before_the_disk_was_full(disk, tmp_path, kilobytes):
    folder, leave_free = disk
    train_to(make_trainer(tmp_path / "whole/checkpoints"), tmp_path / "whole")
    fill = FillDisk(leave_free, kilobytes)
    with pytest.raises((OSError, RuntimeError)):
        train_to(make_trainer(folder / "checkpoints", [fill], save_total_limit=1), folder)
    assert names(folder / "checkpoints") == ["checkpoint-1"]
    assert last_whole_checkpoint(folder / "checkpoints") == str(folder / "checkpoints/checkpoint-1")
    (folder / "filler").unlink()
    torch.manual_seed(1)
    train_to(make_trainer(folder / "checkpoints", save_total_limit=1), folder)
    assert equal(weights(folder), weights(tmp_path / "whole"))
    whole, rest = (json.loads((path / "trainer_state.json").read_text()) for path in (tmp_path / "whole", folder))
    assert whole["log_history"][:3] == rest["log_history"][:3] and len(rest["log_history"]) == 4


@pytest.mark.parametrize("max_steps", [3, 4, 5])
def test_kill_after_the_last_checkpoint_adds_no_update(tmp_path, max_steps):
    options = {"max_steps": max_steps, "lr_scheduler_type": "constant"}  # an update at a rate of 0 would not be seen
    results = []
    for _ in range(2):  # the second time as after a kill while the model was saved
        train_to(make_trainer(tmp_path / "checkpoints", **options), tmp_path)
        results.append((weights(tmp_path), json.loads((tmp_path / "trainer_state.json").read_text())))
        (tmp_path / "model.safetensors").unlink()
    (first, state), (second, again) = results
    assert equal(first, second) and state["global_step"] == again["global_step"] == max_steps
    assert len(state["log_history"]) == len(again["log_history"]) == max_steps + 1
    assert state["log_history"][:-1] == again["log_history"][:-1]


def train_in(folder):
    options = {"max_steps": 6, "save_total_limit": 1, "lr_scheduler_type": "constant"}
    train_to(make_trainer(folder / "checkpoints", **options), folder)


def test_training_that_is_killed_at_random_moments_ends_as_an_undisturbed_one(tmp_path):
    (tmp_path / "whole").mkdir()
    start = time.perf_counter()
    train_in(tmp_path / "whole")
    duration, generator, kills = time.perf_counter() - start, random.Random(0), 0
    folder = tmp_path / "killed"
    folder.mkdir()
    for _ in range(20):
        run = multiprocessing.get_context("fork").Process(target=train_in, args=(folder,))
        run.start()
        run.join(generator.uniform(0, duration / 2) if kills < 8 else 60)
        kills += run.is_alive()
        run.kill()
        run.join()
        assert run.exitcode in (0, -signal.SIGKILL)
        if run.exitcode == 0:
            break
    assert run.exitcode == 0 and kills > 0
    assert equal(weights(folder), weights(tmp_path / "whole"))
    killed, whole = (json.loads((path / "trainer_state.json").read_text()) for path in (folder, tmp_path / "whole"))
    assert killed["log_history"][:-1] == whole["log_history"][:-1] and killed["global_step"] == 6
    assert names(folder) == names(tmp_path / "whole")


def test_kill_while_renaming_never_mixes_two_models(tmp_path, monkeypatch):
    first, second = (MarianMTModel(marian_config()) for _ in range(2))
    replace, done = Path.replace, []

    def killed(path, target):
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(target)
        return replace(path, target)

    outcomes = []
    for step in range(5):
        folder = tmp_path / str(step)
        first.save_pretrained(folder, max_shard_size="10KB" if step % 2 else "1GB")
        done.clear()
        with monkeypatch.context() as context:
            context.setattr(Path, "replace", killed)
            try:
                with replaced_at_once(folder) as staging:
                    second.save_pretrained(staging)
            except KeyboardInterrupt:
                with pytest.raises(OSError, match="no file named"):
                    MarianMTModel.from_pretrained(folder)
                outcomes.append("no weights")
        with replaced_at_once(folder) as staging:
            second.save_pretrained(staging)
        assert names(folder) == ["config.json", "generation_config.json", "model.safetensors"]
        assert equal(weights(folder), second.state_dict())
    assert outcomes == ["no weights"] * 3


@pytest.mark.parametrize("state", [None, "", '{"global_step": 1', "{}"], ids=["none", "empty", "cut", "nothing"])
def test_checkpoint_that_was_cut_short_is_not_resumed_from(tmp_path, state):
    assert last_whole_checkpoint(tmp_path) is None
    for step in (2, 9, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        folder.joinpath("trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-11")
    path = tmp_path / "checkpoint-11/trainer_state.json"
    path.unlink() if state is None else path.write_text(state)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("kind", [EditableSeq2SeqTrainer, EditableCausalLMTrainer, EditableImageTrainer])
def test_editable_trainers_save_so(kind):
    assert kind.__mro__[1] is WholeCheckpoints  # before the mixin, whose file belongs to the checkpoint
