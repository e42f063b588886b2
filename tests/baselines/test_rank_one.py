from __future__ import annotations

import pytest
import torch
from tiny_images import NUM_CLASSES, image_rows, snapshot, tiny_huggingface_resnet, tiny_resnet

from editable_hf import ClassConstraint, edit, edited, gd
from editable_hf.baselines.rank_one import feature_moment, nearest_logits, rank_one
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator

HEADS = {
    "cifar resnet": (tiny_resnet, "linear.weight"),
    "hugging face": (tiny_huggingface_resnet, "classifier.1.weight"),
}


@pytest.fixture(params=HEADS.values(), ids=HEADS)
def model_and_head(request):
    build, head = request.param
    return build(), head


def features_of(model, head, images):
    """What enters the head, from its output: the logits of a head that is the identity are not at hand."""
    found = []
    module = model.get_submodule(head.rpartition(".")[0])
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    model(images)
    handle.remove()
    return found[0].detach()


def test_moment_is_the_mean_of_outer_products(model_and_head):
    model, head = model_and_head
    rows, before = image_rows(17), snapshot(model)
    features = features_of(model, head, torch.stack([row["pixel_values"] for row in rows]))
    expected = sum(torch.outer(row, row) for row in features) / 17
    assert torch.allclose(feature_moment(model.train(), rows, batch_size=5, progress=None), expected, atol=1e-10)
    assert model.training and all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    with pytest.raises(ValueError, match="from 1 to the 17 rows of the data, got 18"):
        feature_moment(model, rows, num_examples=18)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_nearest_logits_are_those_of_a_search(seed, margin):
    generator = torch.Generator().manual_seed(seed)
    logits, target = 3 * torch.randn(6, generator=generator).double(), seed % 6
    found = nearest_logits(logits, target, margin)
    others = [index for index in range(6) if index != target]
    assert found[target] >= found[others].max() + margin - 1e-12
    # For every level that the others are cut at, the best value of the target; a fine search over levels.
    levels = torch.linspace(logits.min().item() - 1, logits.max().item() + 1, 200_001).double()
    cost = (logits[others].unsqueeze(1) - levels).clamp(min=0).square().sum(0)
    cost += (levels + margin - logits[target]).clamp(min=0).square()
    assert (found - logits).square().sum() == pytest.approx(cost.min().item(), abs=1e-6)


def test_no_other_update_that_does_the_same_changes_the_data_less(model_and_head):
    model, head = model_and_head
    rows = image_rows(60, seed=2)
    moment = feature_moment(model, rows, progress=None)
    image = image_rows(1, seed=7)[0]["pixel_values"].unsqueeze(0)
    target = int(model(image).logits.argmin())
    result = edit(model, ClassConstraint({"pixel_values": image}, target), rank_one(moment, ridge=1e-9), head)
    assert result.success and result.num_steps == 1 and result.loss == pytest.approx(-1e-3, abs=1e-6)
    change = result.params[head] - model.get_parameter(head).detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-9) == 1

    def cost(update):
        return torch.trace(update @ moment @ update.T)

    # Updates that give the image the same logits: those that differ where the image's features do not look.
    features = features_of(model, head, image)[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(change.shape, generator=generator).double()
        other -= torch.outer(other @ features, features) / (features @ features)
        for size in (1e-3, 0.1):
            assert cost(change + size * other) >= cost(change) * (1 - 1e-9)


def test_drawdown_of_its_edits(model_and_head):
    model, head = model_and_head
    rows = image_rows(23, seed=1)
    requests = make_image_requests([row["labels"] for row in rows], NUM_CLASSES, 8, seed=2)
    evaluator = ErrorDrawdownEvaluator(model, rows, layers=head)
    editor = rank_one(feature_moment(model, rows, progress=None))
    records = evaluator.evaluate(requests, editor, progress=None)
    assert all(record["success"] and record["after"] == record["target"] for record in records)
    assert {record["num_steps"] for record in records} == {0, 1}
    pixels = torch.stack([row["pixel_values"] for row in rows])
    for request, record in zip(requests, records, strict=True):
        constraint = ClassConstraint({"pixel_values": pixels[request["image_index"]].unsqueeze(0)}, request["target"])
        with edited(model, edit(model, constraint, editor, head)):
            predictions = model(pixels).logits.argmax(-1)
        assert record["num_changed"] == int((predictions != evaluator.before).sum())


def test_what_it_is_not_for(model_and_head):
    model, head = model_and_head
    editor = rank_one(feature_moment(model, image_rows(9), progress=None))
    images = torch.stack([row["pixel_values"] for row in image_rows(2)])
    target = int(model(images[:1]).logits.argmin())
    one, two = (ClassConstraint({"pixel_values": images[:count]}, target) for count in (1, 2))
    with pytest.raises(ValueError, match=f'layers="{head}" and nothing else'):
        edit(model, one, editor, "chain1")
    with pytest.raises(ValueError, match="for one image, but the constraint has 2"):
        edit(model, two, editor, head)
    with pytest.raises(TypeError, match="needs a ClassConstraint, got a function"):
        edit(model, lambda functional_model, params: None, editor, head)
    assert edit(model, one, editor, head, max_steps=0).num_steps == 0
    assert edit(model, one, gd(1e-3), head).num_steps > 0
