"""The extra layer of section 4.3: a residual block between the pooled features and the classifier."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from editable_hf.models.image_classifier import check_rebuilt
from editable_hf.models.resnet import StemResNetConfig
from editable_hf.seams.transformers_seam import SubConfigSpec, any_attention, init, take_attention


@strict
class ExtraBlockConfig(PreTrainedConfig):
    """Configuration of an [`ExtraBlockForImageClassification`].

    Args:
        backbone: Configuration of the image classifier that gets the block, ResNet-18 if not given. It also gives the
            number of classes.
        hidden_size: Width of the block. Section 4.3: "a 4096-unit dense layer".

    Raises:
        ValueError: If `num_labels` is given and is not the backbone's.
    """

    model_type = "extra_block"
    sub_configs_defaults = {"backbone": SubConfigSpec(AutoConfig, model_type=StemResNetConfig.model_type)}

    backbone: dict | PreTrainedConfig | None = None
    hidden_size: int = 4096

    def __post_init__(self, **kwargs: Any):
        given = self.id2label is not None or "num_labels" in kwargs
        super().__post_init__(**kwargs)
        if not given:
            self.id2label, self.label2id = self.backbone.id2label, self.backbone.label2id
        elif self.num_labels != self.backbone.num_labels:
            raise ValueError(
                f"The extra block is given {self.num_labels} classes (`num_labels` or `id2label`), but the classifier "
                f"after it has {self.backbone.num_labels}. Set them in `backbone`, the block takes them from there."
            )


@any_attention  # which one is possible is for the classifier inside to say, and it does
class ExtraBlockForImageClassification(PreTrainedModel):
    """Any Hugging Face image classifier with a residual block just before its last linear layer.

    Only the block is meant to be edited: `edit(model, constraint, editor, "extra")`. The weights of the classifier
    keep their names behind `backbone.`; the block's are below `extra` within that last linear layer. Until the block
    has been trained or edited, the logits are those of the classifier without it, bit for bit.

    Args:
        config: The classifier's configuration and the width of the block.

    Raises:
        ValueError: If the classifier has no linear layer that gives `num_labels` outputs.
    """

    config_class = ExtraBlockConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # Not every classifier makes use of the Trainer's `num_items_in_batch`; a mean over the batch is what all return.
    accepts_loss_kwargs = False

    def __init__(self, config: ExtraBlockConfig):
        super().__init__(config)
        self._install(AutoModelForImageClassification.from_config(config.backbone))
        self.post_init()

    @classmethod
    def from_backbone(cls, model: PreTrainedModel, hidden_size: int = 4096) -> ExtraBlockForImageClassification:
        """Puts a new block into a trained classifier.

        Nothing is copied: `model` becomes part of the result, its parameters stay the same objects, and it is changed
        (it has the block as well from now on).

        Args:
            model: An image classifier whose last linear layer gives `num_labels` outputs.
            hidden_size: Width of the block.

        Raises:
            TypeError: If the result could not be loaded again, because `AutoModelForImageClassification` would build
                another class for the model's configuration.
            ValueError: If there is no such linear layer, or it has a block already.

        Example:
            >>> from transformers import AutoModelForImageClassification
            >>> classifier = AutoModelForImageClassification.from_pretrained("microsoft/resnet-18")  # doctest: +SKIP
            >>> model = ExtraBlockForImageClassification.from_backbone(classifier)  # doctest: +SKIP
        """
        find_head(model)
        # A copy, because a configuration that is made sets the attention of those in it.
        config = ExtraBlockConfig(backbone=copy.deepcopy(model.config), hidden_size=hidden_size)
        with torch.device("meta"):  # for all that `post_init` sets up, without new values for the trained weights
            wrapped = cls(config)
        check_rebuilt(wrapped.backbone, model)
        wrapped._install(model)
        wrapped._initialize_block()
        return wrapped.train(model.training)

    def _install(self, backbone: PreTrainedModel) -> None:
        name = find_head(backbone)
        parent, _, child = name.rpartition(".")
        head = _HeadWithExtra(backbone.get_submodule(name), self.config.hidden_size)
        setattr(backbone.get_submodule(parent), child, head)
        self.backbone, self._head_name = backbone, name
        self.config.backbone = backbone.config
        take_attention(self.config, backbone.config)
        self.supports_gradient_checkpointing = backbone.supports_gradient_checkpointing

    def initialize_weights(self) -> None:
        """Gives values to the weights that have none yet."""
        super().initialize_weights()
        self._initialize_block()

    def _initialize_block(self) -> None:
        # The block is within the classifier, whose own rule for new weights would not start it at 0.
        extra = self.backbone.get_submodule(self._head_name).extra
        init.kaiming_uniform_(extra.dense.weight, a=math.sqrt(5))
        for start_at_zero in (extra.dense.bias, extra.output.weight, extra.output.bias):
            init.zeros_(start_at_zero)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ModelOutput:
        """What the classifier returns.

        Args:
            pixel_values: `(batch, channels, height, width)`.
            labels: Class indices, `(batch,)`.
            kwargs: Further inputs of the classifier.
        """
        return self.backbone(pixel_values=pixel_values, labels=labels, **kwargs)


class _ExtraBlock(nn.Module):
    """`x + output(elu(dense(x)))`."""

    def __init__(self, width: int, hidden_size: int, **factory: Any):
        super().__init__()
        self.dense = nn.Linear(width, hidden_size, **factory)
        self.output = nn.Linear(hidden_size, width, **factory)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.output(F.elu(self.dense(features)))


class _HeadWithExtra(nn.Linear):
    """A linear layer behind a block. It is one itself, so that its weights keep their names."""

    def __init__(self, head: nn.Linear, hidden_size: int):
        nn.Module.__init__(self)
        self.in_features, self.out_features = head.in_features, head.out_features
        self.weight, self.bias = head.weight, head.bias
        self.extra = _ExtraBlock(head.in_features, hidden_size, device=head.weight.device, dtype=head.weight.dtype)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(self.extra(features))


def find_head(model: PreTrainedModel) -> str:
    """Qualified name of the last linear layer that gives `num_labels` outputs."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if any(isinstance(module, _HeadWithExtra) for module in layers.values()):
        raise ValueError(
            f"This {type(model).__name__} has an extra block already, and can have one only. Give a model as it was "
            "before `from_backbone`, loaded anew."
        )
    heads = [name for name, module in layers.items() if module.out_features == model.config.num_labels]
    if not heads:
        others = ", ".join(f"{name} ({module.out_features})" for name, module in list(layers.items())[-3:]) or "none"
        raise ValueError(
            f"{type(model).__name__} has no linear layer with {model.config.num_labels} outputs (`num_labels` of its "
            f"configuration), before which the extra block would go; its last linear layers are: {others}. Set "
            "`num_labels` to what the model gives, or choose an image classifier that ends in a linear layer."
        )
    return heads[-1]
