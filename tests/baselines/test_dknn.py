from __future__ import annotations

import copy

import pytest
import torch
from dknn_checks import NUM_QUERIES, build, constraint, pixels, predictions_by_hand, vote_counts
from rounding import assert_same_up_to_rounding
from sklearn.neighbors import KNeighborsClassifier
from tiny_images import (
    NUM_CLASSES,
    changed_names,
    snapshot,
    tiny_extra,
    tiny_huggingface_resnet,
    tiny_resnet,
    tiny_vit,
)
from torch.nn import functional as F

from editable_hf.baselines import dknn
from editable_hf.baselines.dknn import DkNNForImageClassification, flip_labels
from editable_hf.core import EditStack, edit
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.models import CifarResNetForImageClassification


def embeddings(rows, layer):
    """Of one layer of [`tiny_resnet`], pooled and normalized by hand, one image at a time."""
    model, outputs = tiny_resnet(), []
    model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        for row in rows:
            model(row["pixel_values"].unsqueeze(0))
    pooled = torch.stack([output.sum((0, 2, 3)) / output[0, 0].numel() for output in outputs])
    return pooled / pooled.square().sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize(("layer", "module"), [("chain2", "layer2"), ("chain3", "layer3")])
def test_one_layer_is_scikit_learns_classifier(references, queries, k, layer, module):
    model = build(references, layer, k)
    judge = KNeighborsClassifier(k, metric="cosine").fit(
        embeddings(references, module).numpy(), [row["labels"] for row in references]
    )
    expected = torch.from_numpy(judge.predict_proba(embeddings(queries, module).numpy()))
    logits = model(pixel_values=pixels(queries)).logits
    assert torch.equal(vote_counts(model, logits), (expected * k).round().long())
    top = expected.topk(2, 1).values
    clear = top[:, 0] > top[:, 1]  # scikit-learn gives ties to the lower class
    assert torch.equal(logits.argmax(1)[clear], expected.argmax(1)[clear]) and clear.sum() > NUM_QUERIES / 2
    assert len(set(logits.argmax(1).tolist())) > 2
    distances, indices = judge.kneighbors(embeddings(queries, module).numpy())
    found, similarities = model.search(pixels(queries))
    assert found.squeeze(1).tolist() == indices.tolist()
    torch.testing.assert_close(similarities.squeeze(1), 1 - torch.from_numpy(distances), rtol=0, atol=1e-12)


def test_layers_vote_together_and_similarity_breaks_ties(references, queries):
    model = build(references, k=2)
    logits = model(pixel_values=pixels(queries)).logits
    neighbors, similarities = model.search(pixels(queries))
    assert neighbors.shape == (NUM_QUERIES, 2, 2)
    for index, module in enumerate(("layer2", "layer3")):
        expected = embeddings(queries, module) @ embeddings(references, module).T
        torch.testing.assert_close(similarities[:, index], expected.sort(1, descending=True).values[:, :2])
    assert logits.argmax(1).tolist() == predictions_by_hand(neighbors, similarities, model.labels)
    best = vote_counts(model, logits).topk(2, 1).values
    assert (best[:, 0] == best[:, 1]).sum() > 3  # ties there are
    assert all(len(set(row)) == NUM_CLASSES for row in logits.tolist())
    assert not logits.requires_grad and next(model.search.backbone.parameters()).requires_grad


def test_even_equal_votes_are_in_order(references):
    """The same image under two labels: neither count nor similarity tells them apart."""
    twins = [{**references[0], "labels": label} for label in (3, 1)]
    model = build([*twins, *references[1:9]], "chain3", k=2)
    logits = model(pixel_values=pixels(references[:1])).logits
    assert torch.equal(vote_counts(model, logits), torch.tensor([[0, 1, 0, 1, 0]]))
    for target in range(NUM_CLASSES):
        loss = edit(model, constraint(references[0], target), flip_labels(), "labels").history[0]
        assert (loss <= 0) == (logits.argmax() == target)


def test_k_can_be_changed(references, queries):
    model, other = build(references, k=3), build(references, k=7)
    model.config.k = 7
    assert torch.equal(model(pixels(queries)).logits, other(pixels(queries)).logits)


def test_search_in_pieces(references, queries, monkeypatch):
    model = build(references)
    expected = model.search(pixels(queries))
    sizes, original = [], torch.Tensor.topk
    monkeypatch.setattr(dknn, "_MAX_SIMILARITIES", 5 * len(references))
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, k: sizes.append(self.shape) or original(self, k))
    indices, similarities = model.search(pixels(queries))
    assert torch.equal(indices, expected[0])
    torch.testing.assert_close(similarities, expected[1], rtol=0, atol=1e-12)
    assert max(rows for rows, _ in sizes) == 5 and sum(rows for rows, _ in sizes) == 2 * NUM_QUERIES


def test_building_leaves_the_backbone_and_the_generators_alone(references):
    backbone = tiny_resnet().train()
    before, state = snapshot(backbone), torch.random.get_rng_state()
    model = DkNNForImageClassification.from_backbone(backbone, references, "chain3", 3, batch_size=7, progress=None)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not changed_names(backbone, before) and model.training and backbone.layer1.training
    assert model.search.backbone is backbone and backbone.layer3[0].bn1.weight is not None
    torch.testing.assert_close(model.search.references, build(references, "chain3", 3).search.references)
    assert model.labels.tolist() == [row["labels"] for row in references] and not model.labels.requires_grad
    assert model.memory == len(references) * (64 * 8 + 8)


@pytest.mark.parametrize(
    ("backbone", "layers", "width"),
    [
        (tiny_huggingface_resnet, ["stem", "chain4"], 4 + 16),
        (tiny_extra, ["chain3"], 64),
        (tiny_vit, ["classifier"], NUM_CLASSES),
    ],
)
def test_saved_with_its_edits_and_loaded(references, queries, tmp_path, backbone, layers, width):
    model = build(references, layers, 3, backbone)
    assert model.search.references.shape == (60, width)
    target = int(model(pixels(queries)).logits[0].argmin())
    EditStack(model).apply(edit(model, constraint(queries[0], target), flip_labels(), "labels"))
    expected = model(pixels(queries)).logits
    assert expected[0].argmax() == target
    model.save_pretrained(tmp_path)
    loaded, info = DkNNForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.labels.dtype == torch.long and torch.equal(loaded.labels, model.labels)
    assert_same_up_to_rounding(loaded(pixels(queries)).logits, expected)
    assert edit(loaded, constraint(queries[0], target), flip_labels(), "labels").num_steps == 0


@pytest.fixture
def requests(queries):
    return make_image_requests([row["labels"] for row in queries], NUM_CLASSES, 12, seed=2)


@pytest.mark.parametrize("together", [1, 5])
def test_evaluation_is_that_of_brute_force(references, queries, requests, together):
    model = build(references, k=10)
    evaluator = ErrorDrawdownEvaluator(model, queries, layers="labels", batch_size=10, edits_together=together)
    records = evaluator.evaluate(requests, flip_labels(), progress=None)
    labels = torch.tensor([row["labels"] for row in queries])
    before = model(pixels(queries)).logits.argmax(1)
    assert evaluator.error_rate == (before != labels).double().mean().item()
    for request, record in zip(requests, records, strict=True):
        row = queries[request["image_index"]]
        changed = copy.deepcopy(model)
        result = edit(changed, constraint(row, request["target"]), flip_labels(), "labels", replay=False)
        changed.labels.copy_(result.params["labels"])
        after = changed(pixels(queries)).logits.argmax(1)
        assert record["error_rate"] == (after != labels).double().mean().item()
        assert record["changed"] == [[i, int(after[i])] for i in range(NUM_QUERIES) if after[i] != before[i]]
        assert record["num_steps"] == result.num_steps and record["success"]
        assert record["after"] == request["target"] == after[request["image_index"]]
    summary = evaluator.summarize("DkNN", records)
    assert summary["success_rate"] == summary["verified_rate"] == 1 and summary["drawdown"] > 0


def test_one_search_serves_all_edits(references, queries, requests, monkeypatch):
    model = build(references, k=10)
    evaluator = ErrorDrawdownEvaluator(model, queries, layers="labels")
    calls, search = [], dknn._nearest
    monkeypatch.setattr(dknn, "_nearest", lambda *args: calls.append(len(args[0])) or search(*args))
    edits = [
        edit(model, constraint(queries[request["image_index"]], request["target"]), flip_labels(), "labels")
        for request in requests
    ]
    # For the flips and, once for all their steps, for `l_e`; in two layers.
    assert calls == 4 * len(requests) * [1] and sum(result.num_steps for result in edits) > len(requests)
    calls.clear()
    evaluator.predict([result.params for result in edits * 16])
    assert len(edits * 16) > 190 and calls == [NUM_QUERIES, NUM_QUERIES]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 61}, "`k` must be from 1 to the 60 references, got 61"),
        ({"k": 0}, "got 0"),
        ({"layers": "chain4"}, "has no 'chain4'; its chains are chain1 to chain3"),
        ({"layers": "layer9"}, "got 'layer9'"),
        ({"layers": []}, "`layers` is empty"),
    ],
)
def test_wrong_arguments(references, options, message):
    with pytest.raises(ValueError, match=message):
        build(references, **options)


def test_layers_that_give_no_embedding(references):
    with pytest.raises(ValueError, match="Layer 'vit.layers' is not called in the model's forward"):
        build(references, "vit.layers", 3, tiny_vit)
    message = r"Layer 'vit.layernorm' must give features .* got a tensor of shape \(60, 5, 8\)"
    with pytest.raises(ValueError, match=message):
        build(references, "vit.layernorm", 3, tiny_vit)


def test_labels_that_are_no_classes_of_the_backbone(references):
    with pytest.raises(ValueError, match="labels from 0 to 7, but the model's classes are 0 to 4"):
        build([*references, {**references[0], "labels": 7}])


def test_backbone_of_another_class(references):
    class Other(CifarResNetForImageClassification):
        pass

    with pytest.raises(TypeError, match="is a Other, but AutoModelForImageClassification builds a CifarResNet"):
        build(references, backbone=lambda: Other(tiny_resnet().config).double())


def test_embeddings_are_unit_vectors(references):
    model = build(references)
    for part in model.search.references.split([32, 64], 1):
        torch.testing.assert_close(part, F.normalize(part, dim=1))
