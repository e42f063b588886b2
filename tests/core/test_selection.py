import pytest
import torch
from tiny_images import tiny_extra, tiny_huggingface_resnet, tiny_resnet, tiny_vit
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ResNetConfig,
    ResNetForImageClassification,
)

from editable_hf.core import select_parameters
from editable_hf.core.parts import last_decoder_layer, part_modules
from editable_hf.models import DenseNetConfig, DenseNetForImageClassification, ExtraBlockForImageClassification


def under(model, *prefixes):
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def test_one_parameter_by_its_full_name(marian):
    name = "model.decoder.layers.1.fc2.weight"
    selected = select_parameters(marian, name)
    assert list(selected) == [name]
    assert selected[name] is marian.get_parameter(name)


def test_module_by_its_full_name(marian):
    assert list(select_parameters(marian, "model.decoder.layers.1")) == under(marian, "model.decoder.layers.1.")


@pytest.mark.parametrize("suffix", ["decoder.layers.1", "decoder.layers.1.fc2", "decoder.layers.1.fc2.bias"])
def test_suffix_of_a_name(marian, suffix):
    full = f"model.{suffix}"
    expected = [name for name in under(marian, full) if name == full or name.startswith(f"{full}.")]
    assert list(select_parameters(marian, suffix)) == expected != []


def test_suffix_begins_at_a_dot(classifier):
    with pytest.raises(ValueError, match="'ead' matches no parameter of Classifier"):
        select_parameters(classifier, "ead")


@pytest.mark.parametrize("name", ["lm_head", "lm_head.weight"])
def test_tied_head_names_what_it_is_tied_to(marian, name):
    with pytest.raises(
        ValueError, match=r"lm_head.weight is tied to model.shared.weight, .* Select 'model.shared.weight'"
    ):
        select_parameters(marian, name)


def test_module_name_does_not_select_longer_names():
    model = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2)})
    assert list(select_parameters(model, "layer1")) == ["layer1.weight", "layer1.bias"]


def test_exact_name_wins_over_the_same_suffix_elsewhere():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "inner": nn.ModuleDict({"head": nn.Linear(2, 2)})})
    assert list(select_parameters(model, "head")) == ["head.weight", "head.bias"]


def test_pattern(marian):
    selected = select_parameters(marian, "model.decoder.layers.*.fc1.*")
    assert list(selected) == under(marian, "model.decoder.layers.0.fc1.", "model.decoder.layers.1.fc1.")
    assert len(selected) == 4


def test_star_selects_everything(marian):
    assert list(select_parameters(marian, "*")) == [name for name, _ in marian.named_parameters()]


def test_order_is_the_models_own_and_repetitions_count_once(classifier):
    selected = select_parameters(classifier, ["head", "first.bias", "*.bias", "first"])
    names = ["first.weight", "first.bias", "second.bias", "head.weight", "head.bias"]
    assert list(selected) == names
    assert list(select_parameters(classifier, iter(["first.bias", "head"]))) == ["first.bias", *names[-2:]]


def test_last_decoder_layer(seq2seq):
    t5 = seq2seq.config.model_type == "t5"
    name = "decoder.block.1" if t5 else "model.decoder.layers.1"
    assert last_decoder_layer(seq2seq) == name
    selected = select_parameters(seq2seq, "last_decoder_layer")
    assert list(selected) == under(seq2seq, f"{name}.") != []
    assert isinstance(seq2seq.get_submodule(name), nn.Module)
    assert all(value is seq2seq.get_parameter(key) for key, value in selected.items())


def test_last_decoder_layer_of_a_model_without_decoder(classifier):
    with pytest.raises(ValueError, match="Classifier has no list of layers below a module named 'decoder'"):
        select_parameters(classifier, "last_decoder_layer")


def test_frozen_parameters_can_be_selected(classifier):
    classifier.requires_grad_(False)
    assert len(select_parameters(classifier, "head")) == 2


def test_tied_parameter_appears_once_under_its_first_name(seq2seq):
    selected = [name for name, value in select_parameters(seq2seq, "*").items() if value.shape[0] == 40]
    assert len(selected) == 1 and selected[0].endswith("shared.weight")


def test_ambiguous_suffix_lists_what_fits(marian):
    with pytest.raises(ValueError) as raised:
        select_parameters(marian, "layers.1")
    message = "Layer 'layers.1' is ambiguous: it fits model.decoder.layers.1, model.encoder.layers.1. Write more"
    assert message in str(raised.value)


@pytest.mark.parametrize("entry", ["model.decoder.layer.1", "decoder.layers.1.fc3", "model.decoder.layers.9.*"])
def test_nothing_matched_lists_similar_names(marian, entry):
    with pytest.raises(ValueError, match="Layer '.*' matches no parameter of MarianMTModel") as raised:
        select_parameters(marian, ["model.decoder.layers.0", entry])
    assert repr(entry) in str(raised.value)
    assert "model.decoder.layers." in str(raised.value).split("for example:")[1]


@pytest.mark.parametrize("layers", [[], ()])
def test_no_entry(classifier, layers):
    with pytest.raises(ValueError, match="`layers` is empty"):
        select_parameters(classifier, layers)


def test_selection_changes_nothing(classifier):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    select_parameters(classifier, "*")
    assert all(torch.equal(value, before[name]) for name, value in classifier.state_dict().items())


def resnet(depths=(1, 1, 1, 1)):
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4] * len(depths), depths=list(depths), layer_type="basic", num_labels=3
    )
    return ResNetForImageClassification(config)


def test_parts_of_a_resnet():
    model = resnet()
    assert list(select_parameters(model, "stem")) == under(model, "resnet.embedder.")
    for number in range(4):
        assert list(select_parameters(model, f"chain{number + 1}")) == under(model, f"resnet.encoder.stages.{number}.")
    assert list(select_parameters(model, "head")) == under(model, "classifier.")
    everything = [name for name, _ in model.named_parameters()]
    assert list(select_parameters(model, ["stem", "chain1", "chain2", "chain3", "chain4", "head"])) == everything
    assert list(select_parameters(model, "all")) == everything


def test_part_that_a_resnet_does_not_have():
    with pytest.raises(ValueError, match="has no 'chain4'; its chains are chain1 to chain3"):
        select_parameters(resnet((1, 1, 1)), "chain4")


def test_part_of_another_model(marian):
    with pytest.raises(ValueError, match="is no ResNet or DenseNet, so 'chain3' means nothing for it"):
        select_parameters(marian, "chain3")


def network(*names, **children):
    return nn.ModuleDict({**{name: nn.Linear(1, 1) for name in names}, **children})


def test_parts_of_a_cifar_resnet():
    model = network(backbone=network("conv1", "bn1", "linear", layer1=network("conv1", "bn1")))
    assert list(select_parameters(model, "stem")) == under(model, "backbone.conv1.", "backbone.bn1.")
    assert list(select_parameters(model, "chain1")) == under(model, "backbone.layer1.")
    assert list(select_parameters(model, "head")) == under(model, "backbone.linear.")


def test_parts_of_a_densenet():
    names = ["conv0", "norm0", "denseblock1", "transition1", "denseblock2", "norm5"]
    model = network("classifier", features=network(*names))
    assert list(select_parameters(model, "stem")) == under(model, "features.conv0.", "features.norm0.")
    assert list(select_parameters(model, "chain1")) == under(model, "features.denseblock1.", "features.transition1.")
    assert list(select_parameters(model, "chain2")) == under(model, "features.denseblock2.")
    assert set(select_parameters(model, "head")) == set(under(model, "features.norm5.", "classifier."))


def test_extra_block_is_no_part_of_the_head():
    model = resnet()
    model.classifier = nn.ModuleDict({"extra": nn.Linear(4, 4), "linear": nn.Linear(4, 3)})
    assert list(select_parameters(model, "head")) == under(model, "classifier.linear.")
    assert list(select_parameters(model, "extra")) == under(model, "classifier.extra.")


def test_modules_of_a_part():
    model = resnet()
    assert part_modules(model, "stem") == ["resnet.embedder"]
    assert part_modules(model, "chain3") == ["resnet.encoder.stages.2"]
    cifar = network(backbone=network("conv1", "bn1", "linear", layer1=network("conv1", "bn1")))
    assert part_modules(cifar, "stem") == ["backbone.conv1", "backbone.bn1"]
    assert part_modules(cifar, "chain1") == ["backbone.layer1"]
    assert part_modules(cifar, "head") == ["backbone.linear"]
    features = network("conv0", "norm0", "denseblock1", "transition1", "norm5")
    dense = nn.ModuleDict({"features": features, "classifier": nn.Linear(1, 1)})
    assert part_modules(dense, "chain1") == ["features.denseblock1", "features.transition1"]


@pytest.mark.parametrize("part", ["chain0", "layer3", "resnet.embedder", "all", ""])
def test_what_is_no_part(part):
    with pytest.raises(ValueError, match=f"`part` must be 'stem', 'head' or a chain .*, got '{part}'"):
        part_modules(resnet(), part)


def test_part_that_the_model_does_not_have():
    with pytest.raises(ValueError, match="has no 'chain4'; its chains are chain1 to chain3"):
        part_modules(resnet((1, 1, 1)), "chain4")


def test_feed_forward_part_that_is_not_known_is_refused_with_the_parts():
    model = nn.Module()
    model.decoder = nn.Module()
    model.decoder.layers = nn.ModuleList([nn.ModuleDict({"attn": nn.Linear(2, 2), "mixer": nn.Linear(2, 2)})])
    with pytest.raises(ValueError, match="its parts are attn, mixer"):
        select_parameters(model, "last_decoder_mlp")


@pytest.mark.parametrize(
    ("build", "block", "head"),
    [
        (tiny_resnet, "layer3.", "linear."),
        (tiny_huggingface_resnet, "resnet.encoder.stages.3.", "classifier."),
        (tiny_vit, "vit.layers.1.", "classifier."),
        (tiny_extra, "backbone.layer3.", "backbone.linear."),
        (
            lambda: DenseNetForImageClassification(
                DenseNetConfig(cifar_stem=True, block_config=[2, 2], growth_rate=4)
            ),
            "features.denseblock2.",
            ["features.norm5.", "classifier."],
        ),
        (
            lambda: ExtraBlockForImageClassification.from_backbone(tiny_vit(), hidden_size=16),
            "backbone.vit.layers.1.",
            "backbone.classifier.",
        ),
    ],
)
def test_last_block_and_head(build, block, head):
    model = build()
    assert list(select_parameters(model, "last_block")) == under(model, block) != []
    expected = [name for name in under(model, *([head] if isinstance(head, str) else head)) if "extra" not in name]
    assert list(select_parameters(model, "head")) == expected != []


def test_both_heads_of_a_model_with_a_teacher():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = DeiTForImageClassificationWithTeacher(DeiTConfig(**sizes, image_size=8, patch_size=4, num_labels=3))
    names = [f"{kind}_classifier.{part}" for kind in ("cls", "distillation") for part in ("weight", "bias")]
    assert list(select_parameters(model, "head")) == names


def test_head_that_is_tied_is_the_tensor_that_it_is_tied_to(marian):
    assert list(select_parameters(marian, "head")) == ["model.shared.weight"]


@pytest.mark.parametrize(("part", "reason"), [("last_block", "no list of layers"), ("head", "no linear layer after")])
def test_names_to_choose_from_where_there_is_no_such_part(part, reason):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=f"Sequential has {reason}.*'{part}' means nothing.* qualified names: 0, 2"):
        select_parameters(model, part)
