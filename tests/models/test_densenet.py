import json

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
from safetensors.torch import save_file

from editable_hf.core.replay import record
from editable_hf.models import DENSENET_SIZES, DenseNetConfig, DenseNetForImageClassification

pytestmark = pytest.mark.compat

SIZES = {"growth_rate": 3, "block_config": [2, 3, 2], "num_init_features": 4, "bn_size": 2}


@pytest.fixture
def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield lambda **options: with_random_statistics(
            DenseNetForImageClassification(DenseNetConfig(**SIZES, **{"num_labels": 5, **options}))
        )


@pytest.fixture
def images():
    return random_images(32)


def reference_logits(state, images, block_config, cifar_stem):
    """Huang et al. (2017), with bottlenecks and compression by a half, from torchvision's names."""

    def norm_relu(name, x):
        return reference_norm(state, f"features.{name}", x).clamp(min=0)

    def convolution(name, x, stride=1):
        return reference_convolution(state, f"features.{name}", x, stride)

    x = norm_relu("norm0", convolution("conv0", images, 1 if cifar_stem else 2))
    if not cifar_stem:
        x = reference_max_pool(x)
    for block, num_layers in enumerate(block_config, start=1):
        outputs = [x]
        for layer in range(1, num_layers + 1):
            name = f"denseblock{block}.denselayer{layer}"
            hidden = convolution(f"{name}.conv1", norm_relu(f"{name}.norm1", torch.cat(outputs, 1)))
            outputs.append(convolution(f"{name}.conv2", norm_relu(f"{name}.norm2", hidden)))
        x = torch.cat(outputs, 1)
        if block < len(block_config):
            x = convolution(f"transition{block}.conv", norm_relu(f"transition{block}.norm", x))
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    return norm_relu("norm5", x).mean((2, 3)) @ state["classifier.weight"].T + state["classifier.bias"]


@pytest.mark.parametrize("cifar_stem", [False, True])
def test_logits_against_an_independent_implementation(cifar_stem, build, images):
    model = build(cifar_stem=cifar_stem)
    assert_logits(model, images, reference_logits(model.state_dict(), images, SIZES["block_config"], cifar_stem))


# What torchvision's documentation gives for each.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("densenet121", 7_978_856),
        ("densenet161", 28_681_000),
        ("densenet169", 14_149_480),
        ("densenet201", 20_013_928),
    ],
)
def test_number_of_parameters(name, count):
    assert num_parameters(lambda: DenseNetForImageClassification(DenseNetConfig(**DENSENET_SIZES[name]))) == count


def test_new_weights():
    torch.manual_seed(0)
    model = DenseNetForImageClassification(DenseNetConfig(block_config=[2, 2], num_labels=10))
    weight = model.features.denseblock1.denselayer1.conv2.weight
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)  # He et al. (2015)
    assert model.features.norm5.weight.eq(1).all() and not model.classifier.bias.any()


def test_defaults_are_densenet169():
    assert {key: DenseNetConfig().to_dict()[key] for key in DENSENET_SIZES["densenet169"]} == DENSENET_SIZES[
        "densenet169"
    ]
    assert DenseNetConfig().num_labels == 1000 and set(DENSENET_SIZES) >= {"densenet121", "densenet201"}


def test_two_classes_are_saved(tmp_path):
    # transformers leaves them out of `config.json`, as the default of most models.
    DenseNetConfig(num_labels=2).save_pretrained(tmp_path)
    config = DenseNetConfig.from_pretrained(tmp_path)
    assert config.id2label == {0: "LABEL_0", 1: "LABEL_1"} and config.label2id == {"LABEL_0": 0, "LABEL_1": 1}


def test_names_are_those_of_torchvision():
    with torch.device("meta"):
        names = list(DenseNetForImageClassification(DenseNetConfig()).state_dict())
    layer = [
        *(f"norm1.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "conv1.weight",
        *(f"norm2.{key}" for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        "conv2.weight",
    ]
    assert names[6:18] == [f"features.denseblock1.denselayer1.{key}" for key in layer]
    assert names[0] == "features.conv0.weight" and names[1] == "features.norm0.weight"
    assert "features.transition3.conv.weight" in names and "features.denseblock4.denselayer32.conv2.weight" in names
    assert names[-2:] == ["classifier.weight", "classifier.bias"]


@pytest.fixture
def timm_folder(tmp_path):
    """A folder as timm's on the hub: `config.json` without `model_type`, and the weights alone."""

    def write(state, architecture="densenet121", num_classes=5):
        config = {"architecture": architecture, "num_classes": num_classes, "num_features": 1024}
        config["pretrained_cfg"] = {"tag": "tv_in1k", "input_size": [3, 224, 224], "num_classes": num_classes}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
        return tmp_path

    return write


@pytest.mark.parametrize("counters", [True, False])
def test_folder_of_timm(counters, build, images, timm_folder, tmp_path):
    model = build()
    state = {key: value for key, value in model.state_dict().items() if counters or "num_batches" not in key}
    folder = timm_folder(state)
    # The name says densenet121; only the test is of another size.
    loaded, info = DenseNetForImageClassification.from_pretrained(folder, **SIZES, output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.config.num_labels == 5 and not loaded.training
    assert_same_up_to_rounding(loaded.double()(images).logits, model(images).logits)
    assert all(value.eq(0) for key, value in loaded.named_buffers() if key.endswith("num_batches_tracked"))
    loaded.save_pretrained(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["model_type"] == "densenet" and config["block_config"] == [2, 3, 2]
    assert "architecture" not in config and "pretrained_cfg" not in config


def test_new_classes_for_a_folder_of_timm(build, timm_folder):
    folder = timm_folder(build().state_dict())
    options = {**SIZES, "num_labels": 7, "ignore_mismatched_sizes": True, "output_loading_info": True}
    model, info = DenseNetForImageClassification.from_pretrained(folder, **options)
    assert {key[0] for key in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model.classifier.out_features == model.config.num_labels == 7


def test_configuration_of_timm(timm_folder):
    config = DenseNetConfig.from_pretrained(timm_folder({}, "densenet161", 1000))
    assert (config.growth_rate, config.num_init_features, config.block_config) == (48, 96, [6, 12, 36, 24])
    assert config.num_labels == 1000


def test_other_architectures_of_timm(timm_folder):
    with pytest.raises(ValueError, match="timm's for 'resnet18', which this DenseNet cannot be: .* densenet121, dens"):
        DenseNetForImageClassification.from_pretrained(timm_folder({}, "resnet18"))


@pytest.mark.parametrize(
    ("part", "answered"),
    [
        ("features.denseblock3", ["features.transition2"]),
        ("features.denseblock3.denselayer2", ["features.transition2", "features.denseblock3.denselayer1"]),
    ],
)
def test_replay_runs_only_what_is_edited(part, answered, build, images):
    model = build()
    names = [name for name, _ in model.named_parameters() if name.startswith(f"{part}.")]
    with record(model, [model.get_parameter(name) for name in names]) as recording:
        model(images)
    modules = {module: name for name, module in model.named_modules()}
    assert [modules[module] for module in recording.cached][-len(answered) :] == answered
    params = {name: model.get_parameter(name) + 0.1 for name in names}
    expected = torch.func.functional_call(model, params, (images,)).logits
    assert not torch.allclose(expected, model(images).logits)
    torch.testing.assert_close(recording.replay(params).logits, expected, rtol=0, atol=1e-13)
