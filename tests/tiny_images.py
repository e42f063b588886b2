"""Tiny image classifiers with BatchNorm statistics of their own, and images of five classes that they can learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from editable_hf.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    ExtraBlockForImageClassification,
    StemResNetConfig,
    StemResNetForImageClassification,
)

NUM_CLASSES, SIZE = 5, 8


def tiny_resnet(seed: int = 0) -> PreTrainedModel:
    """A CIFAR ResNet of depth 8 in float64, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CifarResNetForImageClassification(CifarResNetConfig(depth=8, num_labels=NUM_CLASSES)).double().eval()
        _stir_statistics(model)
    return model


def tiny_huggingface_resnet() -> PreTrainedModel:
    """Hugging Face's ResNet, whose residuals are added in place, in float64, in eval mode."""
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 6, 8, 16], "depths": [1, 1, 2, 1]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = StemResNetConfig(cifar_stem=True, num_labels=NUM_CLASSES, **sizes)
        model = StemResNetForImageClassification(config).double().eval()
        _stir_statistics(model)
    return model


def _stir_statistics(model: nn.Module) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def tiny_extra(seed: int = 0) -> PreTrainedModel:
    """[`tiny_resnet`] with an extra block that is not at its start any more."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ExtraBlockForImageClassification.from_backbone(tiny_resnet(seed), hidden_size=16)
        nn.init.normal_(model.backbone.linear.extra.output.weight, std=0.1)
    return model


def tiny_vit() -> PreTrainedModel:
    """A ViT of two layers, without BatchNorm and dropout, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.3,
            image_size=SIZE,
            patch_size=4,
            num_labels=NUM_CLASSES,
            attn_implementation="eager",
        )
        return ViTForImageClassification(config).double()


def image_rows(count: int, seed: int = 0, noise: float = 1.0) -> list[dict[str, Tensor | int]]:
    """Rows with `pixel_values` in float64 and `labels`: the pattern of the class under noise."""
    patterns = torch.randn(NUM_CLASSES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(99)).double()
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(count):
        image = patterns[index % NUM_CLASSES] + noise * torch.randn(3, SIZE, SIZE, generator=generator).double()
        rows.append({"pixel_values": image, "labels": index % NUM_CLASSES})
    return rows


def image_requests(count: int = 3) -> list[dict[str, Tensor | int]]:
    """Edit requests with `pixel_values` and `target`."""
    rows = image_rows(count, seed=4)
    return [{"pixel_values": row["pixel_values"], "target": (row["labels"] + 2) % NUM_CLASSES} for row in rows]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def changed_names(model: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """Names of the parameters and buffers that are not bit for bit what they were, or were not there."""
    after = snapshot(model)
    return [name for name, value in after.items() if name not in before or not torch.equal(value, before[name])]


class Augmented(torch.utils.data.Dataset):
    """Rows whose pixels get new noise at each access, from torch's global generator, as crops and flips do."""

    def __init__(self, rows: list[dict[str, Tensor | int]], noise: float = 0.5):
        self.rows, self.noise = rows, noise

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        pixels = self.rows[index]["pixel_values"]
        return {**self.rows[index], "pixel_values": pixels + self.noise * torch.randn(pixels.shape).to(pixels)}
