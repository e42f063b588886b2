"""DenseNet (Huang et al., 2017), which section 4.3 edits, with the parameter names of torchvision and timm."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from editable_hf.models.image_classifier import ImageClassifier
from editable_hf.seams.transformers_seam import may_miss_batch_counters

# timm's names for torchvision's architectures.
DENSENET_SIZES: dict[str, dict[str, Any]] = {
    "densenet121": {"growth_rate": 32, "block_config": [6, 12, 24, 16], "num_init_features": 64},
    "densenet161": {"growth_rate": 48, "block_config": [6, 12, 36, 24], "num_init_features": 96},
    "densenet169": {"growth_rate": 32, "block_config": [6, 12, 32, 32], "num_init_features": 64},
    "densenet201": {"growth_rate": 32, "block_config": [6, 12, 48, 32], "num_init_features": 64},
}


@strict
class DenseNetConfig(PreTrainedConfig):
    """Configuration of a [`DenseNetForImageClassification`]; the defaults give DenseNet-169.

    A `config.json` of timm's DenseNets is understood too.

    Args:
        growth_rate: Channels that each layer adds.
        block_config: Number of layers of each dense block.
        num_init_features: Channels of the stem.
        bn_size: Channels of a layer's 1x1 convolution, as a multiple of `growth_rate`.
        cifar_stem: Begin with a 3x3 convolution of stride 1 and no pooling, for images of 32x32 pixels.
        num_labels: Number of classes, 1000 if neither it nor `id2label` is given.
    """

    model_type = "densenet"

    growth_rate: int = 32
    block_config: list[int] | tuple[int, ...] = (6, 12, 32, 32)
    num_init_features: int = 64
    bn_size: int = 4
    cifar_stem: bool = False

    def __post_init__(self, **kwargs: Any):
        self.block_config = list(self.block_config)
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1000)
        super().__post_init__(**kwargs)

    @classmethod
    def default_config_fields(cls) -> dict[str, Any]:
        """What need not be saved: any labels are, since two of them are the default elsewhere but not here."""
        return {**super().default_config_fields(), "id2label": {}, "label2id": {}}

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json`, whether it is ours or timm's.

        Raises:
            ValueError: If it is timm's and describes another architecture.
        """
        config, unused = super().get_config_dict(*args, **kwargs)
        return (_from_timm(config) if "architecture" in config else config), unused


def _from_timm(config: dict[str, Any]) -> dict[str, Any]:
    name = config["architecture"]
    if name not in DENSENET_SIZES:
        raise ValueError(
            f"The configuration is timm's for {name!r}, which this DenseNet cannot be: it has the architectures "
            f"{', '.join(DENSENET_SIZES)}. Choose one of these, for example 'timm/densenet169.tv_in1k'."
        )
    return {
        "model_type": DenseNetConfig.model_type,
        **DENSENET_SIZES[name],
        "num_labels": config["num_classes"],
    }


# Weights from before torch 0.4.1 lack these counters, which only `momentum=None` reads.
@may_miss_batch_counters
class DenseNetForImageClassification(ImageClassifier):
    """DenseNet with a linear classifier.

    `from_pretrained("timm/densenet169.tv_in1k")` loads torchvision's weights as timm stores them. (The Auto classes
    take such a folder for one of transformers' `TimmWrapper`; once saved from here it is an ordinary checkpoint.) The
    four "chains" of section 4.3 are `features.denseblock1` to `features.denseblock4`.

    Args:
        config: The architecture.
    """

    config_class = DenseNetConfig
    kaiming = (nn.Conv2d,)

    def __init__(self, config: DenseNetConfig):
        super().__init__(config)
        self.features = _features(config)
        self.classifier = nn.Linear(self.features.norm5.num_features, config.num_labels)
        self.post_init()

    def classify(self, pixel_values: Tensor) -> Tensor:
        hidden = F.relu(self.features(pixel_values))  # (batch, channels, height / 32, width / 32)
        return self.classifier(hidden.mean((2, 3)))


class _DenseLayer(nn.Module):
    """New features from all that came before in its block."""

    def __init__(self, in_channels: int, growth_rate: int, bn_size: int):
        super().__init__()
        width = bn_size * growth_rate
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth_rate, kernel_size=3, padding=1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.conv1(F.relu(self.norm1(hidden)))
        return self.conv2(F.relu(self.norm2(hidden)))  # (batch, growth_rate, height, width)


class _DenseBlock(nn.Module):
    def __init__(self, in_channels: int, num_layers: int, config: DenseNetConfig):
        super().__init__()
        for index in range(num_layers):
            layer = _DenseLayer(in_channels + index * config.growth_rate, config.growth_rate, config.bn_size)
            self.add_module(f"denselayer{index + 1}", layer)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.children():
            hidden = torch.cat([hidden, layer(hidden)], 1)
        return hidden


class _Transition(nn.Module):
    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, kernel_size=1, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(hidden))), 2)


def _features(config: DenseNetConfig) -> nn.Sequential:
    """Everything before the last rectifier and the pooling, named as torchvision does."""
    channels = config.num_init_features
    layers = OrderedDict[str, nn.Module]()
    if config.cifar_stem:
        layers["conv0"] = nn.Conv2d(3, channels, kernel_size=3, padding=1, bias=False)
    else:
        layers["conv0"] = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
    layers["norm0"] = nn.BatchNorm2d(channels)
    layers["relu0"] = nn.ReLU()
    if not config.cifar_stem:
        layers["pool0"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    for index, num_layers in enumerate(config.block_config, start=1):
        layers[f"denseblock{index}"] = _DenseBlock(channels, num_layers, config)
        channels += num_layers * config.growth_rate
        if index < len(config.block_config):
            layers[f"transition{index}"] = _Transition(channels, channels // 2)
            channels //= 2
    layers["norm5"] = nn.BatchNorm2d(channels)
    return nn.Sequential(layers)
