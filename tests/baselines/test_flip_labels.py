from __future__ import annotations

import copy

import pytest
import torch
from dknn_checks import build, constraint, pixels, predictions_by_hand, vote_counts
from tiny_images import NUM_CLASSES, changed_names, snapshot, tiny_resnet

from editable_hf.baselines.dknn import flip_labels
from editable_hf.core import ClassConstraint, EditStack, JointConstraint, edit, edited, gd


@pytest.mark.parametrize("k", [1, 10])
def test_flips_are_the_nearest_first_until_the_class_is_predicted(references, queries, k):
    model, counts = build(references, k=k), []
    for row in queries:
        before = int(model(pixels([row])).logits.argmax())
        target = (before + 1) % NUM_CLASSES
        result = edit(model, constraint(row, target), flip_labels(), "labels", max_steps=0)
        neighbors, similarities = model.search(pixels([row]))
        labels, flips, expected = model.labels.tolist(), 0, list(neighbors[0].T.flatten())
        while predictions_by_hand(neighbors, similarities, labels) != [target]:
            index = expected.pop(0)
            flips += labels[index] != target
            labels[index] = target
        assert result.params["labels"].tolist() == labels and result.num_steps == flips
        assert result.success and len(result.history) == flips + 1 and result.params["labels"].dtype == torch.long
        for count, loss in enumerate(result.history):
            assert (loss <= 0) == (count == flips)
        counts.append(flips)
    assert min(counts) >= 1 and (k == 1 or max(counts) > 2)


def test_history_is_the_constraint_after_each_flip(references, queries):
    model, row = build(references, k=10), queries[3]
    target = int(model(pixels([row])).logits.argmin())
    result = edit(model, constraint(row, target), flip_labels(), "labels")
    neighbors, _ = model.search(pixels([row]))
    changed, losses = copy.deepcopy(model), []
    for index in [None, *neighbors[0].T.flatten().tolist()]:
        if index is not None and changed.labels[index] == target:
            continue
        if index is not None:
            changed.labels[index] = target
        logits = changed(pixels([row])).logits[0]
        losses.append(float(max(logits[i] for i in range(NUM_CLASSES) if i != target) - logits[target]))
    assert len(losses) > len(result.history) > 3
    assert result.history == pytest.approx(losses[: len(result.history)], abs=1e-6)


def test_one_neighbor_takes_one_flip(references, queries):
    model = build(references, "chain3", k=1)
    for row in queries[:6]:
        (index,) = model.search(pixels([row]))[0].flatten().tolist()
        target = (int(model.labels[index]) + 2) % NUM_CLASSES
        result = edit(model, constraint(row, target), flip_labels(), "labels")
        assert result.num_steps == 1 and (result.params["labels"] != model.labels).nonzero().tolist() == [[index]]
        kept = edit(model, constraint(row, int(model.labels[index])), flip_labels(), "labels")
        assert kept.num_steps == 0 and torch.equal(kept.params["labels"], model.labels)


def test_when_all_neighbors_have_the_class_it_is_predicted(references, queries):
    """Also where no vote less would do: as many references of another class, all of them neighbors."""
    alike = [{**row, "labels": 0} for row in references[:6]]
    model = build(alike, k=6)
    result = edit(model, constraint(queries[0], 4), flip_labels(), "labels")
    assert result.success and 3 <= result.num_steps <= 4
    images = pixels(queries[:2])  # of several examples the worst counts
    model = build(references, k=3)
    both = ClassConstraint({"pixel_values": images}, 4)
    result = edit(model, both, flip_labels(), "labels")
    with edited(model, result):
        assert model(images).logits.argmax(1).tolist() == [4, 4]
    everything = model.labels.clone()
    everything[model.search(images)[0].flatten()] = 4
    with edited(model, {"labels": everything}):
        assert vote_counts(model, model(images).logits)[:, 4].tolist() == [6, 6]
        assert edit(model, both, flip_labels(), "labels").num_steps == 0


def test_undo_is_bit_identical(references, queries):
    model = build(references)
    before = snapshot(model)
    with edited(model, edit(model, constraint(queries[0], 3), flip_labels(), "labels")):
        assert changed_names(model, before) == ["labels"]
    assert not changed_names(model, before)
    stack = EditStack(model)
    for number, target in enumerate((3, 1, 4)):
        stack.apply(edit(model, constraint(queries[number], target), flip_labels(), "labels"))
        assert model(pixels(queries[number : number + 1])).logits.argmax() == target
    while len(stack):
        stack.undo()
    assert not changed_names(model, before)


def test_what_flip_labels_does_not_edit(references, queries):
    wanted = constraint(queries[0], 1)
    with pytest.raises(TypeError, match="got a CifarResNetForImageClassification and a ClassConstraint"):
        edit(tiny_resnet(), wanted, flip_labels(), "head")
    model = build(references)
    with pytest.raises(TypeError, match="got a DkNNForImageClassification and a JointConstraint"):
        edit(model, JointConstraint([wanted]), flip_labels(), "labels")
    with pytest.raises(ValueError, match='edits layers="labels" and nothing else, got labels, search.backbone.conv1'):
        edit(model, wanted, flip_labels(), "all")


def test_gradient_editors_are_not_for_labels(references, queries):
    with pytest.raises(ValueError, match="labels .torch.int64.*floating-point"):
        edit(build(references), constraint(queries[0], 3), gd(1e-2), "labels")
