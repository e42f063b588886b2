"""What holds for every image model: saving, loading, precision, edits, the gradient through an edit."""

import copy
import logging

import pytest
import torch
from rounding import assert_same_up_to_rounding
from torch.func import functional_call, vmap
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
)
from transformers import ViTForImageClassification as ViT

from editable_hf.core import ClassConstraint, edit, edited, rmsprop, select_parameters
from editable_hf.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    DenseNetConfig,
    DenseNetForImageClassification,
    ExtraBlockForImageClassification,
    StemResNetConfig,
    StemResNetForImageClassification,
)

pytestmark = pytest.mark.compat

NUM_LABELS = 4


def stem_resnet(cifar_stem=True):
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6, 8, 24], "depths": [1, 1, 2, 1]}
    return StemResNetForImageClassification(StemResNetConfig(cifar_stem=cifar_stem, num_labels=NUM_LABELS, **sizes))


def cifar_resnet():
    return CifarResNetForImageClassification(CifarResNetConfig(depth=8, num_labels=NUM_LABELS))


def densenet():
    sizes = {"growth_rate": 3, "block_config": [2, 2, 2], "num_init_features": 4, "bn_size": 2}
    return DenseNetForImageClassification(DenseNetConfig(cifar_stem=True, num_labels=NUM_LABELS, **sizes))


def vit():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return ViT(ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=NUM_LABELS))


def extra(build):
    model = ExtraBlockForImageClassification.from_backbone(build(), hidden_size=16)
    head = next(module for name, module in model.named_modules() if name.endswith("extra"))
    torch.nn.init.normal_(head.output.weight, std=0.1)
    return model


# how to build it, what an edit may move (the third stage, or the extra block), and at which rate
MODELS = {
    "stem_resnet": (stem_resnet, "resnet.encoder.stages.2", 1e-3),
    "stem_resnet of ImageNet": (lambda: stem_resnet(cifar_stem=False), "resnet.encoder.stages.2", 1e-2),
    "cifar_resnet": (cifar_resnet, "layer3", 1e-3),
    "densenet": (densenet, "features.denseblock3", 3e-3),
    "extra_block of resnet": (lambda: extra(stem_resnet), "extra", 1e-3),
    "extra_block of cifar_resnet": (lambda: extra(cifar_resnet), "backbone.layer3", 1e-3),
    "extra_block of densenet": (lambda: extra(densenet), "extra", 3e-3),
    "extra_block of vit": (lambda: extra(vit), "extra", 1e-3),
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def templates():
    """Each model in float64 and eval mode, with statistics that are not those of a new one."""
    models = {}
    with torch.random.fork_rng():
        for name, (build, *_) in MODELS.items():
            torch.manual_seed(2)
            model = models[name] = build().double().eval()
            for key, buffer in model.named_buffers():
                if key.endswith("running_mean"):
                    buffer.normal_(std=0.2)
                elif key.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
    return models


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(5, 3, 8, 8, generator=generator, dtype=torch.float64)


@every_model
def test_saved_and_loaded(name, templates, images, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = templates[name]
    model.save_pretrained(tmp_path)
    for auto in (AutoModelForImageClassification, type(model)):
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is type(model) and not loaded.training
        assert not any(info.values()), info
        assert loaded.config.num_labels == NUM_LABELS
        assert list(loaded.state_dict()) == list(model.state_dict())
        assert_same_up_to_rounding(loaded(images).logits, model(images).logits)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert not caplog.records


@every_model
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_precision(name, dtype, tolerance, templates, images, tmp_path):
    expected = templates[name](images).logits
    templates[name].save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype} == {model.dtype}
    output = model(images.to(dtype), labels=torch.arange(5) % NUM_LABELS)
    torch.testing.assert_close(output.logits.double(), expected, rtol=tolerance, atol=tolerance)
    output.loss.backward()
    # In bfloat16 on a CPU, torch 2.13 gives another gradient at each call for a strided convolution of a single pixel,
    # which is what ResNet's last stages have here.
    assert dtype == torch.bfloat16 or all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_loss_and_tuple(name, templates, images):
    labels = torch.arange(5) % NUM_LABELS
    output = templates[name](images, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert templates[name](pixel_values=images).loss is None
    loss, logits = templates[name](images, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert torch.equal(templates[name](images, return_dict=False)[0], logits)


@every_model
def test_train_mode(name, templates, images):
    model = copy.deepcopy(templates[name]).train()
    before = {key: value.clone() for key, value in model.named_buffers()}
    model(images, labels=torch.arange(5) % NUM_LABELS).loss.backward()
    changed = [key for key, value in model.named_buffers() if not torch.equal(value, before[key])]
    assert changed == [key for key in before if "running" in key or "num_batches" in key]
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_model
def test_edit(name, templates, images):
    model, (_, layers, rate) = templates[name], MODELS[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    target = model(images[:1]).logits.argmin().item()
    constraint = ClassConstraint({"pixel_values": images[:1]}, target)
    result = edit(model.train(), constraint, rmsprop(rate), layers, max_steps=100)
    assert all(module.training for module in model.modules())
    model.eval()
    assert result.success and 2 <= result.num_steps, result.history
    assert all(layers in key for key in result.params)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"the edit changed {key}"
    with edited(model, result):
        assert model(images[:1]).logits.argmax() == target
    whole = edit(model, constraint, rmsprop(rate), layers, max_steps=100, replay=False)
    assert whole.num_steps == result.num_steps
    for key, value in whole.params.items():
        torch.testing.assert_close(result.params[key], value, rtol=1e-9, atol=1e-12, msg=key)


@every_model
def test_several_edits_at_once(name, templates, images):
    model, layers = templates[name], MODELS[name][1]
    params = select_parameters(model, layers)
    edits = {key: torch.stack([0.9 * value, 1.1 * value]).detach() for key, value in params.items()}
    logits = vmap(lambda params: functional_call(model, params, (images,)).logits)(edits)  # (edits, batch, classes)
    for index, expected in enumerate(logits):
        one = functional_call(model, {key: value[index] for key, value in edits.items()}, (images,))
        torch.testing.assert_close(one.logits, expected, rtol=1e-10, atol=1e-12)


class Objective:
    """Loss of a train-mode batch, then `l_e` after two steps; the running statistics are constants in it."""

    def __init__(self, model: PreTrainedModel, layers: str, images: torch.Tensor):
        self.model, self.layers, self.images = model, layers, images
        target = model.eval()(images[:1]).logits.argmin().item()
        self.constraint = ClassConstraint({"pixel_values": images[:1]}, target)
        self.statistics: dict[str, torch.Tensor] = {}

    def __call__(self, create_graph: bool) -> torch.Tensor:
        loss = self.model.train()(self.images, labels=torch.arange(5) % NUM_LABELS).loss
        buffers = dict(self.model.named_buffers())
        if not self.statistics:
            self.statistics = {name: value.clone() for name, value in buffers.items()}
        else:
            for name, value in buffers.items():
                value.copy_(self.statistics[name])
        result = edit(self.model, self.constraint, rmsprop(3e-4), self.layers, 2, create_graph)
        assert result.num_steps == 2 and not result.success
        for name, value in self.model.named_buffers():
            assert torch.equal(value, self.statistics[name]), f"the edit changed {name}"
        return loss + result.loss


@pytest.mark.parametrize("name", ["stem_resnet", "densenet", "extra_block of cifar_resnet"])
def test_gradient_through_an_edit(name, templates, images):
    model = copy.deepcopy(templates[name])
    objective = Objective(model, MODELS[name][1], images)
    value = objective(create_graph=True)
    parameters = dict(model.named_parameters())
    grads = dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))
    torch.testing.assert_close(objective(create_graph=False), value)
    generator, step = torch.Generator().manual_seed(4), 1e-6
    errors = {}
    for key, parameter in parameters.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values = []
        for signed in (step, -2 * step):
            with torch.no_grad():
                parameter += signed * direction
            values.append(objective(create_graph=False).item())
        with torch.no_grad():
            parameter += step * direction
        exact, numeric = (grads[key] * direction).sum().item(), (values[0] - values[1]) / (2 * step)
        errors[key] = abs(numeric - exact) / max(1e-2, abs(exact))
    print(f"{name}: largest relative error {max(errors.values()):.1e} of {len(errors)} parameters")
    assert max(errors.values()) < 1e-5, errors


def test_trainer_divides_the_loss_over_accumulated_batches(templates, tmp_path):
    # Their loss is a mean over the batch, and the Trainer must know that it is no sum over all accumulated batches.
    arguments = TrainingArguments(tmp_path, report_to="none", use_cpu=True)
    for model in templates.values():
        assert Trainer(model, arguments).model_accepts_loss_kwargs is False
