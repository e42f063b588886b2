"""Editable+CNP: edits that add a condition vector to intermediate activations (section 4.1, Table 3).

Importing this module lets `AutoConfig` and `AutoModelForImageClassification` know the model.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from editable_hf.core.constraints import ClassConstraint, Constraint
from editable_hf.core.editing import EditFunction
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel, eval_mode
from editable_hf.core.selection import part_modules
from editable_hf.models import StemResNetConfig
from editable_hf.models.image_classifier import check_rebuilt
from editable_hf.seams.torch_seam import intercepted
from editable_hf.seams.transformers_seam import SubConfigSpec


@strict
class CNPConfig(PreTrainedConfig):
    """Configuration of a [`CNPForImageClassification`], made by its `from_backbone`.

    Args:
        backbone: Configuration of the image classifier. It also gives the classes.
        layer: Part of it whose activations the condition is added to, `chain3` in the paper.
        shape: Of these activations: channels, height, width.
    """

    model_type = "cnp"
    sub_configs_defaults = {"backbone": SubConfigSpec(AutoConfig, model_type=StemResNetConfig.model_type)}

    backbone: dict | PreTrainedConfig | None = None
    layer: str = "chain3"
    shape: list[int] | tuple[int, ...] = (256, 8, 8)

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        self.id2label, self.label2id = self.backbone.id2label, self.backbone.label2id


class CNPForImageClassification(PreTrainedModel):
    """A ResNet or DenseNet that is edited by a condition, which is added to a chain's activations for all inputs.

    The condition, a map with the shape of the activations, is the parameter `condition`. It is zero, and training
    leaves it so: the model is the plain network then, bit for bit. An edit gives it another value, which the encoder
    `model.editor` computes from the edited image and the wanted class, without a gradient step:

        edit(model, ClassConstraint(inputs, target), model.editor.build(), "condition")

    An `EditableImageTrainer` with `edit_layers=["condition"]` trains the encoder together with the network by Eq. 2.

    Args:
        config: Made by [`CNPForImageClassification.from_backbone`].
    """

    config_class = CNPConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    accepts_loss_kwargs = False

    def __init__(self, config: CNPConfig):
        super().__init__(config)
        self._install(AutoModelForImageClassification.from_config(config.backbone))
        self.editor = ConditionEncoder(config.shape[0], config.num_labels)
        self.post_init()

    @classmethod
    def from_backbone(
        cls, model: PreTrainedModel, layer: str = "chain3", *, image_size: int
    ) -> CNPForImageClassification:
        """Gives a trained classifier a condition and a new encoder.

        Nothing is copied: `model` becomes part of the result and is changed (it adds the condition from now on).

        Args:
            model: A ResNet or DenseNet.
            layer: The chain whose activations the condition is added to.
            image_size: Height and width of the images; the condition has the shape that they give the activations.

        Raises:
            TypeError: If the result could not be loaded again, because `AutoModelForImageClassification` would build
                another class for the model's configuration.
            ValueError: If the model has no such chain.
        """
        with eval_mode(model), torch.no_grad():
            images = torch.zeros(1, 3, image_size, image_size, device=model.device, dtype=model.dtype)
            activations = _activations(model, _chain(model, layer), {"pixel_values": images})
        # A copy, because a configuration that is made sets the attention of those in it.
        config = CNPConfig(backbone=copy.deepcopy(model.config), layer=layer, shape=list(activations.shape[1:]))
        wrapped = cls(config)
        check_rebuilt(wrapped.backbone, model)
        wrapped._install(model)
        return wrapped.to(model.device, model.dtype).train(model.training)

    def _install(self, backbone: PreTrainedModel) -> None:
        chain = _chain(backbone, self.config.layer)
        if "condition" in dict(chain.named_parameters(recurse=False)):
            raise ValueError(f"{self.config.layer} of this {type(backbone).__name__} has a condition already.")
        chain.register_parameter("condition", nn.Parameter(torch.zeros(self.config.shape), requires_grad=False))
        # Of the module that is given, not of this one: a copy of the model adds its own condition.
        chain.register_forward_hook(_add_condition)
        self.backbone = backbone
        self.config.backbone = backbone.config

    def initialize_weights(self) -> None:
        """Gives values to the weights that have none yet, and freezes the condition: what is loaded requires grad."""
        super().initialize_weights()
        _chain(self.backbone, self.config.layer).condition.requires_grad_(False)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ModelOutput:
        """What the classifier returns with the condition as it stands.

        Args:
            pixel_values: `(batch, 3, image_size, image_size)`.
            labels: Class indices, `(batch,)`.
            kwargs: Further inputs of the classifier.

        Raises:
            ValueError: If the images have another size than the condition was made for.
        """
        return self.backbone(pixel_values=pixel_values, labels=labels, **kwargs)

    def condition_for(self, inputs: Mapping[str, Tensor], target: int) -> Tensor:
        """The condition that should give the inputs the target class, `(channels, height, width)`; in eval mode.

        Args:
            inputs: Keyword inputs of one example, or of a batch, over which the conditions are averaged.
            target: The wanted class.
        """
        with eval_mode(self.backbone):
            activations = _activations(self.backbone, _chain(self.backbone, self.config.layer), inputs)
        targets = torch.full((len(activations),), target, device=activations.device)
        return self.editor(activations, targets).mean(0)


class ConditionEncoder(nn.Module):
    """The editor of a [`CNPForImageClassification`]: one residual block over a chain's activations and the class.

    The embedding of the class is added to the activations before the block. Edits run in eval mode, so that running
    statistics would never be learned: activations are normalized within each example (Layer normalization over
    channels and space). The block's output is multiplied by a learned scale, which starts at 0: an untrained encoder
    changes nothing.

    Args:
        width: Channels of the activations.
        num_classes: Size of the lookup table.
    """

    name = "cnp"
    layers = ("condition",)
    max_steps = 1

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.embedding = nn.Embedding(num_classes, width)
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.scale = nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, activations: Tensor, targets: Tensor) -> Tensor:
        """Conditions, of the shape of the activations `(batch, channels, height, width)`; targets are `(batch,)`."""
        hidden = activations + self.embedding(targets)[:, :, None, None]
        residual = self.conv1(F.relu(self.norm1(hidden)))
        return self.scale * (hidden + self.conv2(F.relu(self.norm2(residual))))

    def values(self) -> dict[str, float]:
        """Hyperparameters to log: it has none."""
        return {}

    def build(self) -> EditFunction:
        """An editor that computes the condition once, whatever `max_steps`: 1 step, or 0 if the constraint holds.

        The condition is added to the one that the model has, so that edits in a row add up.

        Raises:
            TypeError: When called, for another model or constraint.
        """
        return _set_condition


def _set_condition(
    model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int
) -> tuple[Params, Tensor, list[float]]:
    if not isinstance(model.model, CNPForImageClassification) or not isinstance(constraint, ClassConstraint):
        raise TypeError(
            "A condition edits a CNPForImageClassification by a ClassConstraint, got a "
            f"{type(model.model).__name__} and a {type(constraint).__name__}."
        )
    if [name.rpartition(".")[2] for name in params] != ["condition"]:
        raise ValueError(f'A condition is edited as layers="condition" and nothing else, got {", ".join(params)}.')
    loss = constraint(model, params)
    if loss.item() <= 0 or max_steps == 0:
        return params, loss, [loss.item()]
    with torch.set_grad_enabled(model.create_graph):
        condition = model.model.condition_for(constraint.inputs, constraint.target)
    params = {name: param + condition for name, param in params.items()}
    after = constraint(model, params)
    return params, after, [loss.item(), after.item()]


def _chain(backbone: nn.Module, layer: str) -> nn.Module:
    return backbone.get_submodule(part_modules(backbone, layer)[-1])


def _activations(backbone: nn.Module, chain: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The chain's output before the condition is added, `(batch, channels, height, width)`."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Tensor:
        outputs.append(forward(*args, **kwargs))
        return outputs[-1]

    with intercepted([chain], keep):
        backbone(**inputs)
    return outputs[-1]


def _add_condition(chain: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    if output.shape[1:] != chain.condition.shape:
        raise ValueError(
            f"The condition has shape {tuple(chain.condition.shape)}, but these images give activations of shape "
            f"{tuple(output.shape[1:])}; give images of the size that the model was made for (`image_size`)."
        )
    return output + chain.condition


AutoConfig.register(CNPConfig.model_type, CNPConfig)
AutoModelForImageClassification.register(CNPConfig, CNPForImageClassification)
