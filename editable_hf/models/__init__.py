"""Models that the paper's experiments need, as Hugging Face models.

Importing this package lets `AutoConfig` and `AutoModelForImageClassification` know the image models.
"""

from transformers import AutoConfig, AutoModelForImageClassification

from editable_hf.models.cifar_resnet import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    load_published_cifar_resnet,
)
from editable_hf.models.densenet import DENSENET_SIZES, DenseNetConfig, DenseNetForImageClassification
from editable_hf.models.extra_block import ExtraBlockConfig, ExtraBlockForImageClassification
from editable_hf.models.iwslt_transformer import TRANSFORMER_SIZES, iwslt_transformer_config
from editable_hf.models.resnet import StemResNetConfig, StemResNetForImageClassification

__all__ = [
    "DENSENET_SIZES",
    "TRANSFORMER_SIZES",
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "DenseNetConfig",
    "DenseNetForImageClassification",
    "ExtraBlockConfig",
    "ExtraBlockForImageClassification",
    "StemResNetConfig",
    "StemResNetForImageClassification",
    "iwslt_transformer_config",
    "load_published_cifar_resnet",
]

for _config, _model in (
    (StemResNetConfig, StemResNetForImageClassification),
    (CifarResNetConfig, CifarResNetForImageClassification),
    (DenseNetConfig, DenseNetForImageClassification),
    (ExtraBlockConfig, ExtraBlockForImageClassification),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModelForImageClassification.register(_config, _model)
