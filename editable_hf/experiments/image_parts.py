"""What the image recipes share: data with its transforms, and the classifier that everything starts from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from datasets import Dataset
from transformers import AutoModelForImageClassification, PreTrainedModel

from editable_hf.data.image_transforms import EvalTransform, TrainTransform, with_pixels
from editable_hf.data.images import IMAGENET_MEAN, IMAGENET_STD, load_image_data
from editable_hf.models import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    DenseNetConfig,
    DenseNetForImageClassification,
    StemResNetConfig,
    StemResNetForImageClassification,
    load_published_cifar_resnet,
)

_ARCHITECTURES: dict[str, Any] = {
    "cifar_resnet": (CifarResNetConfig, CifarResNetForImageClassification),
    "resnet18": (StemResNetConfig, StemResNetForImageClassification),
    "densenet169": (DenseNetConfig, DenseNetForImageClassification),
}


@dataclass
class ImageDataOptions:
    """Arguments of `load_image_data`, and how images become pixels.

    `normalization` is `own` (mean and deviation of the data) or `imagenet`, for weights that expect those.
    """

    source: str = "embedded"
    class_ids: str | None = None
    image_size: int | None = None
    num_validation: int | None = None
    validation_from: str = "train"
    max_train_samples: int | None = None
    max_validation_samples: int | None = None
    max_test_samples: int | None = None
    normalization: str = "own"

    def __post_init__(self):
        if self.normalization not in ("own", "imagenet"):
            raise ValueError(f"`normalization` must be 'own' or 'imagenet', got {self.normalization!r}.")


@dataclass
class ImageModelOptions:
    """The classifier: `weights` (a checkpoint folder, a hub id, or a published CIFAR ResNet's `.th` file), or random
    weights of an `architecture` (cifar_resnet, resnet18, densenet169) with its configuration's `options`."""

    weights: str | None = None
    architecture: str = "cifar_resnet"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if self.architecture not in _ARCHITECTURES:
            raise ValueError(f"`architecture` must be one of {', '.join(_ARCHITECTURES)}, got {self.architecture!r}.")


class ImageSets(NamedTuple):
    """Datasets that give `pixel_values` and `labels`; only `train` is augmented.

    Attributes:
        train: Random crops, and flips where a mirrored image is still of its class.
        train_plain: The same images as they are.
        validation: Held-out images, see `validation_from`, as they are.
        test: The test set, as it is.
        test_augmented: The test set with training's augmentation.
        num_classes: Of the data.
        test_name: For tables: what was scored.
        class_ids: Label by class name.
        plain: What makes pixels of an image as it is.
        augment: Training's augmentation.
    """

    train: Dataset
    train_plain: Dataset
    validation: Dataset
    test: Dataset
    test_augmented: Dataset
    num_classes: int
    test_name: str
    class_ids: dict[str, int]
    plain: EvalTransform
    augment: TrainTransform


def load_images(options: ImageDataOptions, seed: int) -> ImageSets:
    arguments = {name: value for name, value in asdict(options).items() if name != "normalization"}
    data = load_image_data(**arguments, seed=seed)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if options.normalization == "imagenet" else (data.mean, data.std)
    photos = data.photos  # scaled so that the shorter side is 8/7 of the crop, as usual
    plain = EvalTransform(data.image_size, mean, std, resize=data.image_size * 8 // 7 if photos else None)
    kind = "resized_crop" if photos else "crop"
    augment = TrainTransform(data.image_size, mean, std, kind=kind, flip=data.horizontal_flips)
    splits = data.splits
    return ImageSets(
        train=with_pixels(splits["train"], augment),
        train_plain=with_pixels(splits["train"], plain),
        validation=with_pixels(splits["validation"], plain),
        test=with_pixels(splits["test"], plain),
        test_augmented=with_pixels(splits["test"], augment),
        num_classes=len(data.class_names),
        test_name=data.test_name,
        class_ids=data.class_ids,
        plain=plain,
        augment=augment,
    )


def load_classifier(options: ImageModelOptions, num_classes: int) -> PreTrainedModel:
    """The classifier with as many classes as the data has.

    Raises:
        ValueError: If the weights are of another number of classes.
    """
    config_class, model_class = _ARCHITECTURES[options.architecture]
    if options.weights is None:
        return model_class(config_class(num_labels=num_classes, **options.options))
    if options.weights.endswith(".th"):
        model = load_published_cifar_resnet(options.weights)
    elif options.architecture == "densenet169":  # timm's own config.json does not say what model it is
        model = model_class.from_pretrained(options.weights, **options.options)
    else:
        model = AutoModelForImageClassification.from_pretrained(options.weights, **options.options)
    if model.config.num_labels != num_classes:
        raise ValueError(
            f"{options.weights} tells {model.config.num_labels} classes apart, but the data has {num_classes}; give "
            "weights that were trained on these classes, or data whose classes the weights know (`class_ids`)."
        )
    return model
