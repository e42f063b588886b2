from __future__ import annotations

import copy

import pytest
import torch
from rounding import assert_same_up_to_rounding
from tiny_images import NUM_CLASSES, changed_names, image_rows, snapshot, tiny_huggingface_resnet, tiny_resnet
from transformers import AutoModelForImageClassification

from editable_hf import ClassConstraint, EditStack, edit, edited, rmsprop
from editable_hf.baselines.cnp import CNPForImageClassification
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.models import DenseNetConfig, DenseNetForImageClassification

SIZE = image_rows(1)[0]["pixel_values"].shape[-1]


def tiny_densenet():
    torch.manual_seed(0)
    config = DenseNetConfig(
        growth_rate=4,
        block_config=[1, 1, 1, 1],
        num_init_features=8,
        bn_size=2,
        num_labels=NUM_CLASSES,
        cifar_stem=True,
    )
    return DenseNetForImageClassification(config).double()


BACKBONES = {"cifar resnet": tiny_resnet, "hugging face": tiny_huggingface_resnet, "densenet": tiny_densenet}


def cnp(build=tiny_resnet, layer="chain2", trained=True):
    model = CNPForImageClassification.from_backbone(build().eval(), layer, image_size=SIZE)
    if trained:  # as if: an untrained encoder answers with zeros
        torch.nn.init.normal_(model.editor.scale, std=2.0, generator=torch.Generator().manual_seed(0))
    return model


def images(count=5, seed=3):
    return torch.stack([row["pixel_values"] for row in image_rows(count, seed)])


def wrong_request(model, index=0):
    """An image and a class that the model does not give it."""
    pixels = images()[index : index + 1]
    return ClassConstraint({"pixel_values": pixels}, int(model(pixels).logits.argmin()))


@pytest.mark.parametrize("build", BACKBONES.values(), ids=BACKBONES)
@pytest.mark.parametrize("training", [False, True])
def test_zero_condition_is_the_plain_network(build, training):
    plain, model = build().train(training), cnp(build).train(training)
    assert torch.equal(plain(images()).logits, model(images()).logits)
    names = {name.removeprefix("backbone.") for name, _ in model.backbone.named_parameters()}
    assert {name for name in names if not name.endswith("condition")} == {name for name, _ in plain.named_parameters()}


@pytest.mark.parametrize("build", BACKBONES.values(), ids=BACKBONES)
def test_condition_is_added_to_the_activations_of_the_chain(build):
    plain, model = build().eval(), cnp(build)
    chain = model.backbone.get_submodule(next(n for n, m in model.backbone.named_modules() if hasattr(m, "condition")))
    name = next(n for n, m in model.backbone.named_modules() if m is chain)
    condition = torch.randn(chain.condition.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain.get_submodule(name).register_forward_hook(lambda module, args, output: output + condition)
    (full_name,) = [each for each, _ in model.named_parameters() if each.endswith("condition")]
    with edited(model, {full_name: condition}):
        assert torch.equal(model(images()).logits, plain(images()).logits)


def test_untrained_encoder_changes_nothing():
    model = cnp(trained=False)
    result = edit(model, wrong_request(model), model.editor.build(), "condition")
    (condition,) = result.params.values()
    assert result.num_steps == 1 and not result.success and not condition.any()
    assert result.history[0] == result.history[1] > 0


def test_edit_is_the_encoder_s_answer():
    model = cnp()
    constraint = wrong_request(model)
    before = snapshot(model)
    result = edit(model, constraint, model.editor.build(), "condition")
    (condition,) = result.params.values()
    # By hand: chain 2's output for the image, the class's embedding, one residual block, the scale.
    found = []
    plain = tiny_resnet().eval()
    plain.layer2.register_forward_hook(lambda module, args, output: found.append(output))
    plain(**constraint.inputs)
    own, norm = model.editor, torch.nn.functional.layer_norm
    hidden = found[0] + own.embedding.weight[constraint.target].view(1, -1, 1, 1)
    residual = own.conv2(norm(own.conv1(norm(hidden, hidden.shape[1:]).relu()), hidden.shape[1:]).relu())
    assert torch.allclose(condition, (own.scale * (hidden + residual))[0], atol=1e-9)
    assert not condition.requires_grad and result.num_steps == 1 and len(result.history) == 2
    with edited(model, result):
        logits = model(**constraint.inputs).logits[0]
    others = logits.clone()
    others[constraint.target] = -torch.inf
    assert result.history[1] == pytest.approx((others.max() - logits[constraint.target]).item(), abs=1e-9)
    assert changed_names(model, before) == []


def test_constraint_that_holds_needs_no_step():
    model = cnp()
    constraint = ClassConstraint({"pixel_values": images()[:1]}, int(model(images()[:1]).logits.argmax()))
    result = edit(model, constraint, model.editor.build(), "condition")
    assert result.success and result.num_steps == 0 and not next(iter(result.params.values())).any()
    assert edit(model, wrong_request(model), model.editor.build(), "condition", max_steps=0).num_steps == 0


def test_several_images_have_the_mean_of_their_conditions():
    model = cnp()
    inputs = {"pixel_values": images(3)}
    each = [model.condition_for({"pixel_values": image.unsqueeze(0)}, 1) for image in images(3)]
    assert torch.allclose(model.condition_for(inputs, 1), torch.stack(each).mean(0), atol=1e-9)


def test_condition_is_computed_in_eval_mode_and_changes_nothing():
    model, inputs = cnp(), {"pixel_values": images(3)}
    expected, before = model.condition_for(inputs, 1), snapshot(model)
    assert torch.equal(model.train().condition_for(inputs, 1), expected)
    assert all(module.training for module in model.modules()) and changed_names(model, before) == []


def test_edits_in_a_row_add_up_and_are_taken_back():
    model = cnp()
    stack, before, conditions = EditStack(model), snapshot(model), []
    for index in (0, 1):
        conditions.append(model.condition_for({"pixel_values": images()[index : index + 1]}, index))
        constraint = ClassConstraint({"pixel_values": images()[index : index + 1]}, index)
        result = edit(model, constraint, model.editor.build(), "condition")
        conditions[-1] = conditions[-1] * (result.num_steps > 0)
        stack.apply(result)
    (condition,) = [value for name, value in model.named_parameters() if name.endswith("condition")]
    assert torch.allclose(condition, sum(conditions), atol=1e-9) and condition.any()
    stack.undo()
    stack.undo()
    assert changed_names(model, before) == []


@pytest.mark.parametrize("build", BACKBONES.values(), ids=BACKBONES)
def test_save_and_load(build, tmp_path):
    model = cnp(build)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(
        tmp_path, dtype=torch.float64, output_loading_info=True
    )
    assert type(loaded) is CNPForImageClassification and not any(
        info[key] for key in ("missing_keys", "unexpected_keys")
    )
    assert_same_up_to_rounding(loaded(images()).logits, model.eval()(images()).logits)
    inputs = {"pixel_values": images()[:1]}
    assert_same_up_to_rounding(loaded.condition_for(inputs, 2), model.condition_for(inputs, 2))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    frozen = [{n for n, value in each.named_parameters() if not value.requires_grad} for each in (model, loaded)]
    assert frozen[0] == frozen[1] and [name.rpartition(".")[2] for name in frozen[1]] == ["condition"]


def test_copy_adds_its_own_condition():
    model = cnp()
    twin = copy.deepcopy(model)
    (name,) = [each for each, _ in model.named_parameters() if each.endswith("condition")]
    with torch.no_grad():
        twin.get_parameter(name).fill_(3.0)
    assert torch.equal(model(images()).logits, tiny_resnet().eval()(images()).logits)
    assert not torch.equal(twin(images()).logits, model(images()).logits)


def test_drawdown_is_that_of_brute_force_and_costs_the_rest_of_the_network():
    model, rows = cnp(), image_rows(23, seed=1)
    requests = make_image_requests([row["labels"] for row in rows], NUM_CLASSES, 8, seed=2)
    evaluator = ErrorDrawdownEvaluator(model, rows, layers="condition")
    calls, forward = [], model.backbone.layer1.forward
    # No hook: a module with hooks never answers from a record.
    model.backbone.layer1.forward = lambda hidden: calls.append(len(hidden)) or forward(hidden)
    records = evaluator.evaluate(requests, model.editor.build(), progress=None)
    whole = [count for count in calls if count == 23]
    assert len(whole) == 1, "what precedes the condition runs once for all edits"
    assert {record["num_steps"] for record in records} == {0, 1}
    pixels, labels = torch.stack([row["pixel_values"] for row in rows]), [row["labels"] for row in rows]
    for request, record in zip(requests, records, strict=True):
        constraint = ClassConstraint({"pixel_values": pixels[request["image_index"]].unsqueeze(0)}, request["target"])
        with edited(model, edit(model, constraint, model.editor.build(), "condition")):
            predictions = model(pixels).logits.argmax(-1).tolist()
        wrong = sum(ours != theirs for ours, theirs in zip(predictions, labels, strict=True))
        assert record["error_rate"] == pytest.approx(wrong / 23)


def test_what_it_is_not_for():
    model = cnp()
    constraint = wrong_request(model)
    with pytest.raises(TypeError, match="by a ClassConstraint, got a CNPForImageClassification and a function"):
        edit(model, lambda functional_model, params: None, model.editor.build(), "condition")
    with pytest.raises(TypeError, match="edits a CNPForImageClassification .* got a CifarResNet"):
        edit(tiny_resnet(), constraint, model.editor.build(), "chain1")
    with pytest.raises(ValueError, match='layers="condition" and nothing else'):
        edit(model, constraint, model.editor.build(), ["condition", "chain1"])
    with pytest.raises(ValueError, match="has a condition already"):
        CNPForImageClassification.from_backbone(model.backbone, "chain2", image_size=SIZE)
    with pytest.raises(ValueError, match="has no 'chain7'"):
        CNPForImageClassification.from_backbone(tiny_resnet(), "chain7", image_size=SIZE)
    with pytest.raises(ValueError, match=r"give images of the size that the model was made for"):
        model(torch.zeros(1, 3, 2 * SIZE, 2 * SIZE, dtype=torch.float64))
    # A gradient editor moves a condition too.
    assert edit(model, constraint, rmsprop(1e-1), "condition").num_steps > 0
