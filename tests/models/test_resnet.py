import json
import logging

import pytest
import torch
from network_checks import (
    assert_logits,
    num_parameters,
    random_images,
    reference_convolution,
    reference_max_pool,
    reference_norm,
    with_random_statistics,
)
from rounding import assert_same_up_to_rounding
from transformers import ResNetConfig, ResNetForImageClassification

from editable_hf.models import StemResNetConfig, StemResNetForImageClassification

pytestmark = pytest.mark.compat

SIZES = {"embedding_size": 4, "hidden_sizes": [4, 6, 8, 10], "depths": [2, 1, 2, 1], "num_labels": 3}


@pytest.fixture
def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield lambda **options: with_random_statistics(
            StemResNetForImageClassification(StemResNetConfig(**SIZES, **options))
        )


@pytest.fixture
def images():
    return random_images(32)


def reference_logits(state, images, depths, cifar_stem):
    """ResNet of basic blocks as in He et al. (2016), from named tensors; 1x1 convolutions where the shape changes."""

    def convolution(name, x, stride):
        return reference_norm(
            state, f"{name}.normalization", reference_convolution(state, f"{name}.convolution", x, stride)
        )

    x = convolution("resnet.embedder.embedder", images, 1 if cifar_stem else 2).clamp(min=0)
    if not cifar_stem:
        x = reference_max_pool(x)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name = f"resnet.encoder.stages.{stage}.layers.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            residual = convolution(f"{name}.layer.0", x, stride).clamp(min=0)
            residual = convolution(f"{name}.layer.1", residual, 1)
            if f"{name}.shortcut.convolution.weight" in state:
                x = convolution(f"{name}.shortcut", x, stride)
            x = (x + residual).clamp(min=0)
    return x.mean((2, 3)) @ state["classifier.1.weight"].T + state["classifier.1.bias"]


@pytest.mark.parametrize("cifar_stem", [False, True])
def test_logits_against_an_independent_implementation(cifar_stem, build, images):
    model = build(cifar_stem=cifar_stem)
    assert_logits(model, images, reference_logits(model.state_dict(), images, SIZES["depths"], cifar_stem))


@pytest.mark.parametrize(
    ("options", "count"),
    [({"cifar_stem": True, "num_labels": 10}, 11_173_962), ({"num_labels": 1000}, 11_689_512)],
)
def test_number_of_parameters_of_resnet18(options, count):
    assert num_parameters(lambda: StemResNetForImageClassification(StemResNetConfig(**options))) == count


def test_imagenet_stem_is_the_resnet_of_hugging_face(build, images):
    model = build()
    other = ResNetForImageClassification(ResNetConfig(**SIZES, layer_type="basic")).double().eval()
    other.load_state_dict(model.state_dict())
    assert_same_up_to_rounding(model(images).logits, other(images).logits)


def test_checkpoint_of_hugging_face_loads(build, images, tmp_path, caplog, monkeypatch):
    other = ResNetForImageClassification(ResNetConfig(**SIZES, layer_type="basic"))
    with_random_statistics(other).save_pretrained(tmp_path)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model, info = StemResNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not caplog.records
    assert_same_up_to_rounding(model(images).logits, other(images).logits)
    assert model.config.model_type == "stem_resnet" and not model.config.cifar_stem


def test_other_stem_is_not_loaded_silently(build, tmp_path):
    build().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatched"):
        StemResNetForImageClassification.from_pretrained(tmp_path, cifar_stem=True)
    options = {"cifar_stem": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = StemResNetForImageClassification.from_pretrained(tmp_path, **options)
    assert {key[0] for key in info["mismatched_keys"]} == {"resnet.embedder.embedder.convolution.weight"}
    assert 0.05 < model.resnet.embedder.embedder.convolution.weight.std() < 1


def test_stem_is_saved(tmp_path):
    StemResNetConfig(cifar_stem=True).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["cifar_stem"] is True and saved["model_type"] == "stem_resnet"
    config = StemResNetConfig.from_pretrained(tmp_path)
    assert config.cifar_stem and config.depths == [2, 2, 2, 2] and config.layer_type == "basic"
    assert config.hidden_sizes == [64, 128, 256, 512]


def test_stem_keeps_the_size_of_small_images(build, images):
    for cifar_stem, size in ((True, 32), (False, 8)):
        assert build(cifar_stem=cifar_stem).resnet.embedder(images).shape == (3, 4, size, size)


def test_mean_loss_is_left_to_the_trainer_to_divide():
    # `Trainer` looks for this attribute: the loss is a mean over the batch, whatever `forward` takes.
    assert StemResNetForImageClassification.accepts_loss_kwargs is False
