"""What this package's own convolutional classifiers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from editable_hf.seams.transformers_seam import StartsWeights, init


class ImageClassifier(StartsWeights, PreTrainedModel, ABC):
    """An image classifier of `transformers`; a subclass says what its logits are."""

    kaiming: tuple[type[nn.Module], ...] = ()  # layers whose new weights are He et al.'s
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def start_weights(self, module: nn.Module) -> None:
        super().start_weights(module)
        if isinstance(module, self.kaiming):
            init.kaiming_normal_(module.weight)

    @abstractmethod
    def classify(self, pixel_values: Tensor) -> Tensor:
        """Logits, `(batch, num_classes)`."""

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None
    ) -> ImageClassifierOutputWithNoAttention | tuple[Tensor, ...]:
        """Logits, and the loss where labels are given.

        Args:
            pixel_values: `(batch, 3, height, width)`.
            labels: Class indices, `(batch,)`.
            return_dict: `False` for a tuple of loss (if any) and logits.

        Returns:
            `loss`, scalar, the mean cross-entropy in nats; `logits`, `(batch, num_classes)`.
        """
        logits = self.classify(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        output = ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


def check_rebuilt(rebuilt: PreTrainedModel, model: PreTrainedModel) -> None:
    """Raises a `TypeError` unless the classifier built from a model's configuration is of the model's own class.

    What is saved around another one could not be loaded again.
    """
    if type(rebuilt) is not type(model):
        raise TypeError(
            f"The model is a {type(model).__name__}, but AutoModelForImageClassification builds a "
            f"{type(rebuilt).__name__} for its configuration, so that the result could not be loaded again. Register "
            "your class with `AutoModelForImageClassification.register`."
        )
