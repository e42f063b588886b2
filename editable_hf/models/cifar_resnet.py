"""The ResNets that He et al. (2016) designed for CIFAR-10: ResNet-20, 32, 44 and 56."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from editable_hf.models.image_classifier import ImageClassifier

CHANNELS = (16, 32, 64)


@strict
class CifarResNetConfig(PreTrainedConfig):
    """Configuration of a [`CifarResNetForImageClassification`].

    Args:
        depth: Layers with weights, 6n + 2 for n blocks in each of the three stages.
        num_labels: Number of classes, 10 if neither it nor `id2label` is given.

    Raises:
        ValueError: If `depth` is not 6n + 2.
    """

    model_type = "cifar_resnet"

    depth: int = 20

    def __post_init__(self, **kwargs: Any):
        if self.depth < 8 or self.depth % 6 != 2:
            below = max(8, (self.depth - 2) // 6 * 6 + 2)
            raise ValueError(
                f"`depth` must be 6n + 2 with n blocks in each of three stages, got {self.depth}. The nearest are "
                f"{below} and {below + 6}."
            )
        if self.id2label is None:
            kwargs.setdefault("num_labels", 10)
        super().__post_init__(**kwargs)

    @classmethod
    def default_config_fields(cls) -> dict[str, Any]:
        """What need not be saved: any labels are, since two of them are the default elsewhere but not here."""
        return {**super().default_config_fields(), "id2label": {}, "label2id": {}}


class CifarResNetForImageClassification(ImageClassifier):
    """ResNet of three stages with 16, 32 and 64 channels, without parameters in its shortcuts.

    The published weights' names are kept: `conv1`, `layer1.0.bn2`, `linear` and so on. They expect pixels in [0, 1],
    normalized with the mean and standard deviation of ImageNet.

    Args:
        config: The architecture.
    """

    config_class = CifarResNetConfig
    kaiming = (nn.Conv2d, nn.Linear)

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        blocks = (config.depth - 2) // 6
        self.conv1 = nn.Conv2d(3, CHANNELS[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        self.layer1 = _stage(CHANNELS[0], CHANNELS[0], blocks)
        self.layer2 = _stage(CHANNELS[0], CHANNELS[1], blocks)
        self.layer3 = _stage(CHANNELS[1], CHANNELS[2], blocks)
        self.linear = nn.Linear(CHANNELS[2], config.num_labels)
        self.post_init()

    def classify(self, pixel_values: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(pixel_values)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))  # (batch, 64, height / 4, width / 4)
        return self.linear(hidden.mean((2, 3)))


class _Block(nn.Module):
    """Two 3x3 convolutions; where the shape changes, the shortcut is He et al.'s option A."""

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.stride, self.new_channels = channels // in_channels, channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(hidden)))))
        return F.relu(residual + self._shortcut(hidden))

    def _shortcut(self, hidden: Tensor) -> Tensor:
        if self.new_channels == 0:
            return hidden
        # Every other pixel, and as many channels of zeros before the old ones as after them.
        padding = (0, 0, 0, 0, self.new_channels // 2, self.new_channels // 2)
        return F.pad(hidden[:, :, :: self.stride, :: self.stride], padding)


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(in_channels, channels), *(_Block(channels, channels) for _ in range(blocks - 1)))


def load_published_cifar_resnet(path: str | Path) -> CifarResNetForImageClassification:
    """The weights published in `akamaster/pytorch_resnet_cifar10` as a model in eval mode.

    On CIFAR-10's test set the four reach 91.73% (depth 20), 92.63% (32), 93.10% (44) and 93.39% (56). Nothing in the
    file is executed.

    Args:
        path: `resnet20-12fca82f.th` or its like. The depth is read off the weights.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds something else, or weights are missing, unknown or of another shape.

    Example:
        >>> model = load_published_cifar_resnet("resnet20-12fca82f.th")  # doctest: +SKIP
        >>> model.save_pretrained("resnet20")  # doctest: +SKIP
    """
    state = _read_published(Path(path))
    blocks = len({name.split(".")[1] for name in state if name.startswith("layer1.")})
    num_labels = len(state["linear.bias"]) if "linear.bias" in state else 10
    model = CifarResNetForImageClassification(CifarResNetConfig(depth=6 * max(blocks, 1) + 2, num_labels=num_labels))
    # The files are older than BatchNorm's counter of batches, which nothing here reads.
    counters = {name: value for name, value in model.state_dict().items() if name.endswith("num_batches_tracked")}
    try:
        model.load_state_dict({**counters, **state})
    except RuntimeError as error:
        raise ValueError(
            f"{path} does not hold the weights of a CIFAR ResNet of depth {model.config.depth}: {error} Give a file "
            "from the folder `pretrained_models` of akamaster/pytorch_resnet_cifar10."
        ) from error
    return model.eval()


def _read_published(path: Path) -> dict[str, Tensor]:
    """The weights by name, without the `module.` that DataParallel puts before each."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        return {name.removeprefix("module."): value.detach() for name, value in state.items()}
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path} is not a file of torch weights under 'state_dict' ({type(error).__name__}). Give a `.th` file of "
            "akamaster/pytorch_resnet_cifar10; one saved as a Hugging Face model loads with `from_pretrained`."
        ) from error
