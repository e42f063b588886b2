"""Every kind of image classifier of transformers can be edited, trained to be editable, patched and reviewed."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from image_models import NUM_CLASSES, SIZE, build_image_models
from torch import nn
from transformers import AutoModelForImageClassification

from editable_hf import (
    EditableImageTrainer,
    EditableImageTrainingArguments,
    EditorConfig,
    edit,
    edited,
    rmsprop,
    select_parameters,
)
from editable_hf.core.constraints import ClassConstraint
from editable_hf.data.image_requests import ImageEditRequests
from editable_hf.patches import Patch, apply_patches, revert_patches
from editable_hf.review.images import review_images

MODELS = build_image_models()
LAYERS = "last_block"
# What `last_block` is, as one finds it by reading the model's code.
LAST_BLOCKS = {
    "Beit": "beit.layers.1",
    "CLIP": "vision_model.encoder.layers.1",
    "ConvNext": "convnext.encoder.stages.1",
    "ConvNextV2": "convnextv2.encoder.stages.1",
    "DeiT": "deit.layers.1",
    "Dinov2": "dinov2.encoder.layer.1",
    "EfficientNet": "efficientnet.encoder.blocks.1",
    "MobileNetV2": "mobilenet_v2.layer.15",
    "MobileViT": "mobilevit.encoder.layer.4",
    "PoolFormer": "poolformer.encoder.block.1",
    "RegNet": "regnet.encoder.stages.1",
    "ResNet": "resnet.encoder.stages.1",
    "Siglip": "vision_model.encoder.layers.1",
    "Swin": "swin.encoder.layers.1",
    "Swinv2": "swinv2.encoder.layers.1",
    "ViT": "vit.layers.1",
}
GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randn(6, 3, SIZE, SIZE, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.arange(6) % NUM_CLASSES
ROWS = [{"pixel_values": image, "labels": int(label)} for image, label in zip(IMAGES, LABELS, strict=True)]


def build(name):
    """The model in float64 and eval mode, with statistics that are not those of a new one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]().double().eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
    return model


def logits_of(model, images=IMAGES):
    with torch.no_grad():
        return model(pixel_values=images).logits


def request_of(model):
    """The first image with the class that is least likely for it."""
    return IMAGES[:1], int(logits_of(model, IMAGES[:1]).argmin())


def edit_of(model, **options):
    pixels, target = request_of(model)
    return edit(model, ClassConstraint({"pixel_values": pixels}, target), rmsprop(3e-3), LAYERS, 200, **options)


every_model = pytest.mark.parametrize("name", sorted(MODELS))


@every_model
def test_names_of_parts(name):
    model = build(name)
    block = {key for key, _ in model.named_parameters() if key.startswith(f"{LAST_BLOCKS[name]}.")}
    assert select_parameters(model, LAYERS).keys() == block != set()
    head = select_parameters(model, "head")
    assert [value.shape[0] for value in head.values()] == [NUM_CLASSES] * len(head) and 0 < len(head) <= 2
    with torch.no_grad():
        for value in head.values():
            value.zero_()
    assert not logits_of(model).any()


@every_model
def test_edit(name):
    model = build(name)
    _, target = request_of(model)
    before, old = {key: value.clone() for key, value in model.state_dict().items()}, logits_of(model)
    result, whole = (edit_of(model, replay=replay) for replay in (True, False))
    assert result.success and result.num_steps > 0 and result.num_steps == whole.num_steps
    torch.testing.assert_close(result.history, whole.history, rtol=1e-9, atol=1e-12)
    with edited(model, result):
        assert logits_of(model)[0].argmax() == target
    assert torch.equal(logits_of(model), old)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def trained(name, replay, folder):
    """Gradients and loss of a step of Editable Training, and the trainer."""
    model = build(name)
    wanted = Dataset.from_list([{"image_index": 0, "target": request_of(model)[1]}])
    args = EditableImageTrainingArguments(
        str(folder), edit_learning_rate=1e-3, edit_max_steps=2, edit_layers=[LAYERS], edit_coef=1.0, locality_coef=1.0,
        freeze_batch_norm=True,  # otherwise the base forward's batch statistics are a part of what is reused
        replay=replay, reuse_base_forward=replay, report_to=[], use_cpu=True,
    )  # fmt: skip
    requests = ImageEditRequests(ROWS, requests=wanted)
    trainer = EditableImageTrainer(model, args, train_dataset=ROWS, edit_dataset=requests)
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(5)
    loss = trainer.training_step(model, {"pixel_values": IMAGES, "labels": LABELS})
    return {key: value.grad for key, value in model.named_parameters() if value.grad is not None}, loss, trainer


@every_model
def test_training_step_with_replay_is_that_without(name, tmp_path):
    (first, loss, _), (second, other, _) = (trained(name, replay, tmp_path) for replay in (True, False))
    assert first.keys() == second.keys() and any(
        grad.abs().sum() > 0 for key, grad in first.items() if "editor." in key
    )
    torch.testing.assert_close(loss, other, rtol=1e-9, atol=1e-12)
    for key, grad in first.items():
        assert grad.isfinite().all(), key
        torch.testing.assert_close(grad, second[key], rtol=1e-7, atol=1e-9, msg=key)


@every_model
def test_saved_and_loaded(name, tmp_path):
    _, _, trainer = trained(name, True, tmp_path / "run")
    trainer.save_model(str(tmp_path / "model"))
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values()), info
    own, ours = trainer.model.state_dict(), loaded.double().state_dict()
    assert own.keys() - ours.keys() == {key for key in own if key.startswith("editor.")}
    assert all(torch.equal(value, own[key]) for key, value in ours.items())
    torch.testing.assert_close(logits_of(loaded), logits_of(trainer.model.eval()), rtol=1e-10, atol=1e-12)
    config = EditorConfig.from_pretrained(tmp_path / "model")
    assert config.layers == [LAYERS] and select_parameters(loaded, config.layers)


@every_model
def test_patch(name, tmp_path):
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = edit_of(model)
    patch = Patch.from_edit(model, result, request={"image": "0"}, editor=EditorConfig(), layers=LAYERS)
    patch.save_pretrained(tmp_path / "patch")
    apply_patches(model, [str(tmp_path / "patch")])
    own = dict(model.named_parameters())
    assert all(torch.equal(own[key], value) for key, value in result.params.items())
    revert_patches(model)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


@every_model
def test_review_is_that_of_classifying_twice(name):
    model = build(name)
    old, result = logits_of(model), edit_of(model)
    with edited(model, result):
        new = logits_of(model)
    review = review_images(model, result.params, ROWS, edited_indices=[0], batch_size=4)
    changed = (old.argmax(1) != new.argmax(1)).nonzero().flatten().tolist()
    assert 0 in changed and sorted(change.index for change in review.changes) == changed
    for rate, logits in ((review.before, old), (review.after, new)):
        assert rate == pytest.approx((logits.argmax(1) != LABELS).double().mean().item())
