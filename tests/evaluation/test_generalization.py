from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from tiny_images import (
    NUM_CLASSES,
    Augmented,
    changed_names,
    image_rows,
    snapshot,
    tiny_huggingface_resnet,
    tiny_resnet,
)
from torch import nn

from editable_hf import ClassConstraint, edit, edited, rmsprop
from editable_hf.evaluation.generalization import (
    evaluate_generalization,
    nearest_images,
    pooled_embedding,
    summarize_generalization,
)

COUNT, ALPHA, STEPS = 4, 2e-4, 6


# Nearest neighbors


def projection(images):
    """An embedding of 7 numbers; neighbors by it are not those by pixels."""
    weights = torch.randn(images[0].numel(), 7, generator=torch.Generator().manual_seed(0)).double()
    return images.flatten(1).double() @ weights * torch.logspace(0, 3, 7).double()


def nearest_by_hand(queries, candidates):
    rows = [projection(torch.stack([row["pixel_values"] for row in rows])).numpy() for rows in (queries, candidates)]
    nearest = []
    for query in rows[0]:
        cosines = []
        for candidate in rows[1]:
            norm = math.sqrt((query**2).sum()) * math.sqrt((candidate**2).sum())
            cosines.append(float((query * candidate).sum()) / norm)
        nearest.append(int(np.argmax(cosines)))
    return nearest


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_nearest_images(batch_size):
    queries, candidates = image_rows(9, seed=1, noise=3.0), image_rows(20, seed=2, noise=3.0)
    nearest = nearest_images(queries, candidates, projection, batch_size=batch_size, progress=None)
    expected = nearest_by_hand(queries, candidates)
    assert nearest.dtype == torch.int64 and nearest.tolist() == expected
    assert len(set(expected)) > 3


def test_length_of_an_embedding_does_not_count():
    # At 0, 18 and 44 degrees, of which the last is longest and the first nearest to the query, which is at 11.
    rows = [{"pixel_values": torch.tensor(value)} for value in ([0.01, 0.0], [0.9, 0.3], [100.0, 95.0])]
    query = [{"pixel_values": torch.tensor([0.01, 0.002])}]
    assert nearest_images(query, rows, lambda images: images, progress=None).tolist() == [1]


@pytest.mark.parametrize("training", [True, False])
def test_pooled_embedding(training):
    model = tiny_huggingface_resnet().resnet.train(training)
    before = snapshot(model)
    images = torch.stack([row["pixel_values"] for row in image_rows(3)])
    embedded = pooled_embedding(model)(images.float())
    assert model.training == training and changed_names(model, before) == []
    expected = model.eval()(images.float().double()).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(embedded, expected)
    assert embedded.shape == (3, 16) and not embedded.requires_grad


# Edits


@pytest.fixture
def setup():
    model = tiny_resnet()
    own, other = Augmented(image_rows(5, seed=1)), Augmented(image_rows(6, seed=2))
    with torch.no_grad():
        order = model(torch.stack([row["pixel_values"] for row in own.rows])).logits.argsort(1, descending=True)
    # The second and the least likely class, and the one that is predicted.
    rows = [{"id": 10 + i, "image_index": i, "target": int(order[i, rank])} for i, rank in ((4, 1), (2, 4), (0, 0))]
    return model, rows, own, other, [3, 3, 5, 0, 1]


def augmentations(dataset, index, count):
    return torch.stack([dataset[index]["pixel_values"] for _ in range(count)])


def test_records_by_hand(setup):
    model, rows, own, other, neighbors = setup
    before = snapshot(model)
    options = {"num_augmentations": COUNT, "max_steps": STEPS, "progress": None}
    records = evaluate_generalization(
        model, rows, own, other, torch.tensor(neighbors), rmsprop(ALPHA), "chain3", seed=3, **options
    )
    assert changed_names(model, before) == []
    for number, (row, record) in enumerate(zip(rows, records, strict=True)):
        torch.manual_seed(3 + number)
        neighbor = neighbors[row["image_index"]]
        images, similar = augmentations(own, row["image_index"], COUNT), augmentations(other, neighbor, COUNT)
        result = edit(model, ClassConstraint({"pixel_values": images}, row["target"]), rmsprop(ALPHA), "chain3", STEPS)
        shares = []
        for params in ({}, result.params):
            with edited(model, params):
                predicted = [int(model(image.unsqueeze(0)).logits.argmax()) for image in similar]
                own_classes = [int(model(image.unsqueeze(0)).logits.argmax()) for image in images]
            shares.append(sum(each == row["target"] for each in predicted) / COUNT)
        assert result.success == all(each == row["target"] for each in own_classes)
        seconds = record.pop("edit_seconds")
        assert seconds > 0
        assert record == {
            **row,
            "neighbor": neighbor,
            "success": result.success,
            "num_steps": result.num_steps,
            "loss_before": result.history[0],
            "loss_after": result.history[-1],
            "before": shares[0],
            "after": shares[1],
        }
    assert any(record["after"] != record["before"] for record in records)
    assert {record["success"] for record in records} == {True, False}
    json.dumps(records)


def test_edits_hold_for_every_augmentation(setup):
    # l_e of several images is that of the one that is furthest from the class.
    model, rows, own, *_ = setup
    images, target = augmentations(own, 2, COUNT), rows[1]["target"]
    joint = edit(model, ClassConstraint({"pixel_values": images}, target), rmsprop(ALPHA), "chain3", 0)
    single = [
        edit(model, ClassConstraint({"pixel_values": image.unsqueeze(0)}, target), rmsprop(ALPHA), "chain3", 0)
        for image in images
    ]
    losses = [result.loss.item() for result in single]
    assert joint.loss.item() == pytest.approx(max(losses), abs=1e-12) and min(losses) < max(losses)


def test_seed_alone_decides_the_augmentations(setup):
    model, rows, own, other, neighbors = setup

    def run(seed):
        options = {"num_augmentations": COUNT, "max_steps": 1, "seed": seed, "progress": None}
        seen = []

        class Spy(nn.Module):
            config = model.config
            device, dtype = model.device, model.dtype

            def __init__(self):
                super().__init__()
                self.inner = model

            def forward(self, pixel_values):
                seen.append(pixel_values.sum().item())
                return self.inner(pixel_values)

        evaluate_generalization(Spy(), rows, own, other, neighbors, rmsprop(ALPHA), "linear", **options)
        return seen

    torch.manual_seed(5)
    first = run(1)
    torch.manual_seed(6)
    assert run(1) == first != run(2)
    assert len(set(first)) >= 2 * len(rows)


def test_random_state_of_the_caller_is_kept(setup):
    model, rows, own, other, neighbors = setup
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    options = {"num_augmentations": 2, "max_steps": 1, "progress": None}
    evaluate_generalization(model, rows, own, other, neighbors, rmsprop(ALPHA), "head", **options)
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numbers).all()


def test_gpus_are_not_seeded(setup, monkeypatch):
    model, rows, own, other, neighbors = setup
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    options = {"num_augmentations": 2, "max_steps": 1, "progress": None}
    evaluate_generalization(model, rows, own, other, neighbors, rmsprop(ALPHA), "head", **options)
    assert seeded == []


@pytest.mark.parametrize("training", [True, False])
def test_modes_are_kept(setup, training):
    model, rows, own, other, neighbors = setup
    model.train(training).layer1.train(not training)
    before, modes = snapshot(model), [module.training for module in model.modules()]
    evaluate_generalization(model, rows, own, other, neighbors, rmsprop(ALPHA), "all", max_steps=2, progress=None)
    assert changed_names(model, before) == [] and [module.training for module in model.modules()] == modes


def test_summary():
    record = {"id": 0, "image_index": 0, "target": 1, "neighbor": 2}
    records = [
        {**record, "success": True, "num_steps": 2, "before": 0.0, "after": 0.8, "edit_seconds": 0.1},
        {**record, "success": True, "num_steps": 0, "before": 1.0, "after": 1.0, "edit_seconds": 0.2},
        {**record, "success": False, "num_steps": 10, "before": 0.2, "after": 0.0, "edit_seconds": 0.6},
    ]
    row = summarize_generalization("ours", records)
    intervals = row.pop("intervals")
    assert row == {
        "name": "ours",
        "success": pytest.approx(2 / 3),
        "num_steps": pytest.approx(4.0),
        "before": pytest.approx(0.4),
        "after": pytest.approx(0.6),
        "edit_seconds": pytest.approx(0.3),
        "num_edits": 3,
    }
    assert intervals["after"] == [0.0, 1.0] and intervals.keys() == row.keys() - {"name", "num_edits"}
    with pytest.raises(ValueError, match="There is no value to average"):
        summarize_generalization("none", [])


def test_classes_are_checked(setup):
    model, rows, own, other, neighbors = setup
    wrong = [{**rows[0], "target": NUM_CLASSES}]
    with pytest.raises(ValueError, match="`target` must be a class from 0 to 4, got 5"):
        evaluate_generalization(model, wrong, own, other, neighbors, rmsprop(ALPHA), "head", progress=None)
