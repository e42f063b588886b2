from pathlib import Path

import numpy
import pytest
import torch
from network_checks import (
    assert_logits,
    random_images,
    reference_convolution,
    reference_norm,
    with_random_statistics,
)
from rounding import assert_same_up_to_rounding

from editable_hf.models import CifarResNetConfig, CifarResNetForImageClassification, load_published_cifar_resnet

pytestmark = pytest.mark.compat

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
# file, parameters, correct answers among the 10,000 test images: the errors published with the files are 8.27, 7.37,
# 6.90 and 6.61%
PUBLISHED = {
    20: ("resnet20-12fca82f.th", 269_722, 9_173),
    32: ("resnet32-d509ac18.th", 464_154, 9_263),
    44: ("resnet44-014dd654.th", 658_586, 9_310),
    56: ("resnet56-4bfd9763.th", 853_018, 9_339),
}

needs_data = pytest.mark.skipif(
    not (SHARED / "cifar10_resnet_weights").is_dir() or not (SHARED / "cifar10").is_dir(),
    reason="CIFAR-10 and the published weights are not at hand",
)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return with_random_statistics(CifarResNetForImageClassification(CifarResNetConfig(depth=14)))


@pytest.fixture
def images():
    return random_images(16)


@pytest.fixture
def published(model, tmp_path):
    """Writes a file as those published: names after `module.`, no counters of batches, another entry beside."""

    def write(change=lambda weights: None):
        weights = {
            f"module.{name}": tensor.float()
            for name, tensor in model.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        change(weights)
        torch.save({"best_prec1": 91.7, "state_dict": weights}, tmp_path / "resnet14.th")
        return tmp_path / "resnet14.th"

    return write


def reference_logits(state, images, blocks):
    """He et al. (2016), section 4.2: three stages, identity shortcuts with zeros for the channels that are new."""

    def convolution_norm(name, number, x, stride=1):
        convolved = reference_convolution(state, f"{name}conv{number}", x, stride)
        return reference_norm(state, f"{name}bn{number}", convolved)

    x = convolution_norm("", 1, images).clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            hidden = convolution_norm(name, 2, convolution_norm(name, 1, x, stride).clamp(min=0))
            shortcut = torch.zeros_like(hidden)
            first = (hidden.shape[1] - x.shape[1]) // 2
            shortcut[:, first : first + x.shape[1]] = x[..., ::stride, ::stride]
            x = (hidden + shortcut).clamp(min=0)
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def test_logits_against_an_independent_implementation(model, images):
    assert_logits(model, images, reference_logits(model.state_dict(), images, blocks=2))


@pytest.mark.parametrize("depth", PUBLISHED)
def test_number_of_parameters(depth):
    with torch.device("meta"):
        model = CifarResNetForImageClassification(CifarResNetConfig(depth=depth))
    assert model.num_parameters() == PUBLISHED[depth][1]
    assert len([parameter for parameter in model.parameters() if parameter.ndim > 1]) == depth


def test_new_weights():
    torch.manual_seed(0)
    model = CifarResNetForImageClassification(CifarResNetConfig(depth=8))
    weight = model.layer3[0].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)  # He et al. (2015)
    assert model.layer3[0].bn1.weight.eq(1).all() and not model.linear.bias.any()


@pytest.mark.parametrize(
    ("depth", "nearest"), [(18, "14 and 20"), (21, "20 and 26"), (2, "8 and 14"), (-4, "8 and 14"), (0, "8 and 14")]
)
def test_impossible_depth(depth, nearest):
    with pytest.raises(ValueError, match=rf"must be 6n \+ 2 .* got {depth}. The nearest are {nearest}"):
        CifarResNetConfig(depth=depth)


def test_number_of_classes(tmp_path):
    assert CifarResNetConfig().num_labels == 10
    for options in ({"num_labels": 2}, {"num_labels": 3}, {"id2label": {0: "cat", 1: "dog"}}):
        config = CifarResNetConfig(**options)
        config.save_pretrained(tmp_path)
        loaded = CifarResNetConfig.from_pretrained(tmp_path)
        assert loaded.id2label == config.id2label and loaded.num_labels == options.get("num_labels", 2)


def test_published_file(published, model, images):
    loaded = load_published_cifar_resnet(published())
    assert loaded.config.depth == 14 and loaded.config.num_labels == 10 and not loaded.training
    assert_same_up_to_rounding(loaded(images.float()).logits, model.float()(images.float()).logits)
    assert load_published_cifar_resnet(str(published())).config.depth == 14


def test_weights_are_missing_or_unknown(published):
    path = published(lambda weights: weights.pop("module.layer2.1.conv1.weight"))
    with pytest.raises(ValueError, match=r"(?s)of a CIFAR ResNet of depth 14.*Missing key.*layer2.1.conv1.weight"):
        load_published_cifar_resnet(path)
    path = published(lambda weights: weights.update({"module.fc.bias": torch.zeros(10)}))
    with pytest.raises(ValueError, match=r"(?s)Unexpected key.*fc.bias.*Give a file from"):
        load_published_cifar_resnet(path)
    path = published(lambda weights: weights.update({"module.conv1.weight": torch.zeros(16, 3, 7, 7)}))
    with pytest.raises(ValueError, match="size mismatch for conv1.weight"):
        load_published_cifar_resnet(path)
    path = published(lambda weights: weights.clear())
    with pytest.raises(ValueError, match="Missing key"):
        load_published_cifar_resnet(path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut off", b"\x80\x02}q\x00."])
def test_file_of_another_kind(content, tmp_path):
    (tmp_path / "weights.th").write_bytes(content)
    with pytest.raises(ValueError, match="weights.th is not a file of torch weights|has no tensors under"):
        load_published_cifar_resnet(tmp_path / "weights.th")


class Surprise:
    def __reduce__(self):
        return pytest.fail, ("code of the file was run",)


@pytest.mark.parametrize(
    "content",
    [{"model": {}, "epoch": 3}, {"state_dict": {"epoch": 3}}, torch.zeros(3), {"state_dict": Surprise()}],
    ids=["no weights", "a number", "a tensor", "code"],
)
def test_torch_file_of_another_kind(content, tmp_path):
    torch.save(content, tmp_path / "weights.th")
    with pytest.raises(ValueError, match="is not a file of torch weights under 'state_dict'"):
        load_published_cifar_resnet(tmp_path / "weights.th")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_published_cifar_resnet(tmp_path / "resnet20.th")


def normalized_images(sprite):
    """Test images of one sprite (2,500), normalized as the published weights expect: `(batch, 3, 32, 32)`."""
    image = pytest.importorskip("PIL.Image")
    pixels = numpy.asarray(image.open(SHARED / "cifar10" / f"test_0{sprite}.webp").convert("RGB"))
    tiles = pixels.reshape(50, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3).reshape(2500, 3, 32, 32)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    return (torch.from_numpy(tiles) / 255 - mean) / deviation


def num_correct(model, images, labels):
    with torch.inference_mode():
        predicted = torch.cat([model(batch).logits.argmax(1) for batch in images.split(250)])
    return (predicted == labels).sum().item()


@pytest.fixture(scope="module")
def labels():
    return torch.from_numpy(numpy.load(SHARED / "cifar10" / "test_labels.npy")).long()


@needs_data
def test_resnet20_on_the_first_500_images(labels):
    model = load_published_cifar_resnet(SHARED / "cifar10_resnet_weights" / PUBLISHED[20][0])
    images, labels = normalized_images(0)[:500], labels[:500]
    assert num_correct(model, images, labels) == 453
    expected = reference_logits(model.state_dict(), images[:100], blocks=3)
    torch.testing.assert_close(model(images[:100]).logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("depth", PUBLISHED)
def test_published_accuracy(depth, labels):
    file, _, correct = PUBLISHED[depth]
    model = load_published_cifar_resnet(SHARED / "cifar10_resnet_weights" / file)
    assert model.config.depth == depth
    assert (
        sum(num_correct(model, normalized_images(i), labels[2500 * i : 2500 * (i + 1)]) for i in range(4)) == correct
    )
