"""The ResNet-18 of sections 4.1 and 4.3: Hugging Face's ResNet, with a stem for small images as an option."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification


@strict
class StemResNetConfig(ResNetConfig):
    """Configuration of a [`StemResNetForImageClassification`]; the defaults give ResNet-18.

    A `config.json` of Hugging Face's own ResNet is understood too.

    Args:
        cifar_stem: Begin with a 3x3 convolution of stride 1 and no pooling, for images of 32x32 pixels, in place of
            a 7x7 convolution of stride 2 and max pooling.

    Example:
        >>> config = StemResNetConfig(cifar_stem=True, num_labels=10)
    """

    model_type = "stem_resnet"

    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    depths: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    layer_type: str = "basic"
    cifar_stem: bool = False

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json`, where "resnet" as model type means the same architecture."""
        config, unused = super().get_config_dict(*args, **kwargs)
        if config.get("model_type") == ResNetConfig.model_type:
            config["model_type"] = cls.model_type
        return config, unused


class StemResNetForImageClassification(ResNetForImageClassification):
    """ResNet for images of 224 or of 32 pixels a side.

    With the ImageNet stem it is Hugging Face's own ResNet, so that `microsoft/resnet-18` loads. The four "chains" of
    section 4.3 are `resnet.encoder.stages.0` to `resnet.encoder.stages.3`.

    Args:
        config: The architecture.
    """

    config_class = StemResNetConfig
    # `ResNetForImageClassification.forward` takes any keyword, but its loss is the mean over the batch all the same:
    # without this, the Trainer would not divide it by the number of accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: StemResNetConfig):
        super().__init__(config)
        if config.cifar_stem:
            stem = self.resnet.embedder
            # By its name among the weights, which stays as long as published ones are to load.
            stem.embedder.convolution = nn.Conv2d(
                config.num_channels, config.embedding_size, kernel_size=3, padding=1, bias=False
            )
            stem.pooler = nn.Identity()
            self.post_init()
