import copy

import pytest
import torch
from network_checks import random_images
from rounding import assert_same_up_to_rounding
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from editable_hf.core import ClassConstraint, FunctionalModel, edit, rmsprop, select_parameters
from editable_hf.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    DenseNetConfig,
    DenseNetForImageClassification,
    ExtraBlockConfig,
    ExtraBlockForImageClassification,
    StemResNetConfig,
)

pytestmark = pytest.mark.compat

RESNET = {"embedding_size": 4, "hidden_sizes": [4, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 5,
}
DENSENET = {"growth_rate": 3, "block_config": [1, 1], "num_init_features": 4, "cifar_stem": True, "num_labels": 5}

# the classifier, and the name of its last linear layer
CLASSIFIERS = {
    "resnet": (lambda: ResNetForImageClassification(ResNetConfig(**RESNET)), "classifier.1"),
    "vit": (lambda: ViTForImageClassification(ViTConfig(**VIT)), "classifier"),
    "cifar_resnet": (lambda: CifarResNetForImageClassification(CifarResNetConfig(depth=8, num_labels=5)), "linear"),
    "densenet": (lambda: DenseNetForImageClassification(DenseNetConfig(**DENSENET)), "classifier"),
}
every_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


@pytest.fixture
def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield lambda name: CLASSIFIERS[name][0]().double().eval()


@pytest.fixture
def images():
    return random_images(8)


def block_of(model, name):
    return model.get_submodule(f"backbone.{CLASSIFIERS[name][1]}.extra")


@every_classifier
def test_starts_as_the_same_function(name, build, images):
    classifier = build(name)
    before, weights = classifier(images).logits, {key: id(p) for key, p in classifier.named_parameters()}
    model = ExtraBlockForImageClassification.from_backbone(classifier, hidden_size=16)
    assert torch.equal(model(images).logits, before)
    assert not model.training and model.dtype == torch.float64 == block_of(model, name).dense.weight.dtype
    # The very parameters, under their old names.
    now = {key.removeprefix("backbone."): id(p) for key, p in model.named_parameters() if ".extra." not in key}
    assert now == weights
    # A new one does, too, whatever the classifier's own rule for new weights.
    model = ExtraBlockForImageClassification(model.config).double().eval()
    assert not block_of(model, name).output.weight.any() and block_of(model, name).dense.weight.std() > 0.05


@every_classifier
def test_logits_against_the_formula(name, build, images):
    classifier = build(name)
    features = []
    head = classifier.get_submodule(CLASSIFIERS[name][1])
    hook = head.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    classifier(images)
    hook.remove()
    model = ExtraBlockForImageClassification.from_backbone(classifier, hidden_size=16)
    extra = block_of(model, name)
    for parameter in extra.parameters():
        nn.init.normal_(parameter)
    hidden = features[0] @ extra.dense.weight.T + extra.dense.bias  # (3, 16)
    hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
    expected = (features[0] + hidden @ extra.output.weight.T + extra.output.bias) @ head.weight.T + head.bias
    torch.testing.assert_close(model(images).logits, expected)


def test_size_for_resnet18():
    backbone = StemResNetConfig(num_labels=1000)
    with torch.device("meta"):
        model = ExtraBlockForImageClassification(ExtraBlockConfig(backbone=backbone))
    extra = {key: tuple(value.shape) for key, value in select_parameters(model, "extra").items()}
    prefix = "backbone.classifier.1.extra"
    assert extra == {
        f"{prefix}.dense.weight": (4096, 512),
        f"{prefix}.dense.bias": (4096,),
        f"{prefix}.output.weight": (512, 4096),
        f"{prefix}.output.bias": (512,),
    }
    assert ExtraBlockConfig().backbone.model_type == "stem_resnet"


@every_classifier
def test_edit_of_the_block_runs_the_backbone_once(name, build, images):
    model = ExtraBlockForImageClassification.from_backbone(build(name), hidden_size=16)
    target = model(images[:1]).logits.argmin().item()
    constraint = ClassConstraint({"pixel_values": images[:1]}, target)
    calls = []
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.forward = lambda *args, forward=first.forward: (calls.append(1), forward(*args))[1]
    result = edit(model, constraint, rmsprop(1e-3), "extra", max_steps=100)
    assert result.success and result.num_steps >= 2 and len(calls) == 1
    assert all(".extra." in key for key in result.params)


def test_trained_weights_are_never_initialized_anew(build, images):
    # A head that was replaced after the model was made has no mark that says it is initialized.
    classifier = build("resnet")
    classifier.classifier[1] = nn.Linear(16, 5).double()
    classifier.bfloat16().double()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    model = ExtraBlockForImageClassification.from_backbone(classifier, hidden_size=16)
    for key, value in model.state_dict().items():
        assert ".extra." in key or torch.equal(value, before[key.removeprefix("backbone.")]), key


@every_classifier
def test_checkpoint_without_a_block(name, build, images, tmp_path):
    model = ExtraBlockForImageClassification.from_backbone(build(name), hidden_size=16)
    state = {key: value for key, value in model.state_dict().items() if ".extra." not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) == 4 and not info["unexpected_keys"]
    assert_same_up_to_rounding(loaded(images).logits, model(images).logits)
    assert 0.05 < block_of(loaded, name).dense.weight.std() < 1 and not block_of(loaded, name).dense.bias.any()


def test_attention_stays_as_it_was(build, tmp_path, images):
    for attention in ("eager", "sdpa"):
        classifier = ViTForImageClassification(ViTConfig(**VIT, attn_implementation=attention))
        model = ExtraBlockForImageClassification.from_backbone(classifier, hidden_size=16)
        assert classifier.config._attn_implementation == model.config._attn_implementation == attention
        assert model.config.backbone is model.backbone.config
    model.set_attn_implementation("eager")
    assert model.backbone.config._attn_implementation == "eager"
    model.save_pretrained(tmp_path)
    for options, expected in (({}, "sdpa"), ({"attn_implementation": "eager"}, "eager")):
        loaded = AutoModelForImageClassification.from_pretrained(tmp_path, **options)
        assert loaded.config._attn_implementation == loaded.backbone.config._attn_implementation == expected
    assert loaded(images.float(), output_attentions=True).attentions is not None
    # A model without attention has nothing that lacks a double backward.
    model = ExtraBlockForImageClassification.from_backbone(build("resnet"))
    assert (
        model.config._attn_implementation == ResNetForImageClassification(ResNetConfig()).config._attn_implementation
    )


def test_gradient_checkpointing_where_the_backbone_has_it(build, images):
    model = ExtraBlockForImageClassification.from_backbone(build("vit"), hidden_size=16).train()
    expected = torch.autograd.grad(model(images).logits.sin().sum(), list(model.parameters()))
    # transformers renamed it between 5.21 and 5.24.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    grads = torch.autograd.grad(model(images).logits.sin().sum(), list(model.parameters()))
    for grad, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, other)
    assert not ExtraBlockForImageClassification.from_backbone(build("resnet")).supports_gradient_checkpointing


def test_copies_are_independent(build, images):
    model = ExtraBlockForImageClassification.from_backbone(build("resnet"), hidden_size=16)
    other = copy.deepcopy(model)
    nn.init.normal_(block_of(other, "resnet").output.bias)
    assert not torch.allclose(other(images).logits, model(images).logits)
    params = {key: value.clone() for key, value in select_parameters(other, "extra").items()}
    replaced = FunctionalModel(model, list(params))(params, pixel_values=images).logits
    torch.testing.assert_close(F.log_softmax(replaced, -1), F.log_softmax(other(images).logits, -1))


def test_number_of_classes_is_the_backbones(tmp_path):
    config = ExtraBlockConfig(backbone=ResNetConfig(id2label={0: "a", 1: "b"}))
    assert config.num_labels == 2 and config.id2label == {0: "a", 1: "b"}
    for num_labels in (2, 3):
        backbone = CifarResNetConfig(depth=8, num_labels=num_labels)
        ExtraBlockConfig(backbone=backbone, hidden_size=16).save_pretrained(tmp_path)
        config = ExtraBlockConfig.from_pretrained(tmp_path)
        assert config.num_labels == config.backbone.num_labels == num_labels and config.hidden_size == 16
    with pytest.raises(ValueError, match="given 7 classes .* the classifier after it has 3. Set them in `backbone`"):
        ExtraBlockConfig.from_pretrained(tmp_path, num_labels=7)


def test_own_names_of_classes_are_kept(tmp_path):
    names = {index: name for index, name in enumerate("abcde")}
    ExtraBlockConfig(backbone=ResNetConfig(**RESNET), id2label=names).save_pretrained(tmp_path)
    assert ExtraBlockConfig.from_pretrained(tmp_path).id2label == names


def test_no_linear_layer_for_the_classes(build):
    classifier = build("resnet")
    classifier.config.num_labels = 7
    with pytest.raises(ValueError, match=r"no linear layer with 7 outputs .* linear layers are: classifier.1 \(5\)"):
        ExtraBlockForImageClassification.from_backbone(classifier)
    classifier.classifier[1] = nn.Identity()
    with pytest.raises(ValueError, match="its last linear layers are: none. Set `num_labels`"):
        ExtraBlockForImageClassification.from_backbone(classifier)


def test_second_block(build):
    classifier = build("vit")
    model = ExtraBlockForImageClassification.from_backbone(classifier, hidden_size=16)
    for again in (classifier, model):
        with pytest.raises(ValueError, match="has an extra block already"):
            ExtraBlockForImageClassification.from_backbone(again)


class OwnResNet(ResNetForImageClassification):
    pass


def test_class_that_would_not_be_loaded_again():
    model = OwnResNet(ResNetConfig(**RESNET))
    with pytest.raises(TypeError, match="is a OwnResNet, but AutoModel.* builds a ResNetForImageClassification for"):
        ExtraBlockForImageClassification.from_backbone(model)


def test_last_linear_layer_of_that_size_is_the_head(build):
    # A hidden layer may happen to have as many outputs as there are classes.
    classifier = ViTForImageClassification(ViTConfig(**{**VIT, "num_labels": 8}))
    model = ExtraBlockForImageClassification.from_backbone(classifier, hidden_size=16)
    assert list(select_parameters(model, "extra"))[0] == "backbone.classifier.extra.dense.weight"
