"""The same seed gives the same run, bit for bit on a CPU; another seed another one."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_images import Augmented, image_rows, tiny_resnet
from transformers import set_seed

from editable_hf import rmsprop
from editable_hf.data.image_requests import ImageEditRequests
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator

CLOCK = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


def run_of(trainer):
    trainer.train()
    logs = [{key: value for key, value in log.items() if key not in CLOCK} for log in trainer.state.log_history]
    return logs, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def is_same(one, other):
    return one[0] == other[0] and all(torch.equal(value, other[1][name]) for name, value in one[1].items())


@pytest.fixture
def translation_run(make_trainer, trained_marian, tmp_path):
    def run(seed, folder):
        set_seed(seed)  # as the recipes do: dropout, order of the data, requests
        return run_of(make_trainer(copy.deepcopy(trained_marian), seed=seed, max_steps=4, folder=tmp_path / folder))

    return run


@pytest.fixture
def image_run(make_image_trainer, tmp_path):
    def run(seed, folder):
        set_seed(seed)
        rows = Augmented(image_rows(12))  # drawn anew at each access
        requests = ImageEditRequests(rows, num_classes=5, seed=seed)
        options = {"seed": seed, "max_steps": 4, "folder": tmp_path / folder, "train_dataset": rows}
        return run_of(make_image_trainer(tiny_resnet(), edit_dataset=requests, **options))

    return run


@pytest.mark.parametrize("kind", ["translation_run", "image_run"])
def test_training(kind, request):
    run = request.getfixturevalue(kind)
    first = run(3, "first")
    assert is_same(run(3, "again"), first)
    assert not is_same(run(4, "other"), first)


def test_evaluation():
    requests = [{"id": n, "image_index": n, "label": n % 5, "target": (n + 2) % 5} for n in range(6)]
    records = []
    for _ in range(2):
        evaluator = ErrorDrawdownEvaluator(tiny_resnet(), image_rows(30), layers="chain3", batch_size=7)
        found = evaluator.evaluate(requests, rmsprop(1e-3), max_steps=4, progress=None)
        records.append([{key: value for key, value in record.items() if key != "edit_seconds"} for record in found])
    assert records[0] == records[1] and any(record["num_changed"] for record in records[0])
