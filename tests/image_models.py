"""A tiny model with random weights for each kind of image classifier of transformers."""

from __future__ import annotations

from collections.abc import Callable

import transformers
from transformers import PreTrainedModel

SIZE, NUM_CLASSES = 32, 4
STAGES = {"hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
WIDTH = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
PATCHES = {**WIDTH, "image_size": SIZE, "patch_size": 16, "initializer_range": 0.3}
WINDOWS = {
    **{"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    **{"initializer_range": 0.3, "drop_path_rate": 0.0},
}
RESIDUAL = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}

# Name of the classes (`...Config`, `...ForImageClassification`) and the options of the configuration.
CONFIGS = {
    "Beit": {**PATCHES, "drop_path_rate": 0.0},
    "CLIP": {"vision_config": PATCHES, "text_config": {**WIDTH, "vocab_size": 40}},
    "ConvNext": {**STAGES, "patch_size": 4, "drop_path_rate": 0.0},
    "ConvNextV2": {**STAGES, "patch_size": 4, "drop_path_rate": 0.0},
    "DeiT": PATCHES,
    "Dinov2": {**PATCHES, "mlp_ratio": 2, "drop_path_rate": 0.0},
    "EfficientNet": {
        **{"width_coefficient": 0.25, "depth_coefficient": 0.3, "image_size": SIZE, "hidden_dim": 320},
        **{"in_channels": [32, 16], "out_channels": [16, 24], "strides": [1, 2], "kernel_sizes": [3, 3]},
        **{"num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": [], "depth_divisor": 4},
        **{"dropout_rate": 0.0, "drop_connect_rate": 0.0, "initializer_range": 0.3},
    },
    "MobileNetV2": {"depth_multiplier": 0.1, "depth_divisible_by": 2, "min_depth": 2, "classifier_dropout_prob": 0.0},
    "MobileViT": {
        **{"image_size": SIZE, "hidden_sizes": [8, 8, 8], "neck_hidden_sizes": [4, 4, 4, 4, 4, 4, 8], "patch_size": 1},
        **{"num_attention_heads": 2, "mlp_ratio": 1.0, "expand_ratio": 1.0, "classifier_dropout_prob": 0.0},
        "initializer_range": 0.3,
    },
    "PoolFormer": {
        **{"hidden_sizes": [4, 8], "depths": [1, 1], "num_encoder_blocks": 2, "patch_sizes": [7, 3]},
        **{"strides": [4, 2], "padding": [2, 1], "mlp_ratio": 1.0, "drop_path_rate": 0.0},
        "layer_scale_init_value": 0.5,
    },
    "RegNet": {**RESIDUAL, "groups_width": 4, "layer_type": "y"},
    "ResNet": {**RESIDUAL, "layer_type": "basic"},
    "Siglip": {"vision_config": PATCHES, "text_config": {**WIDTH, "vocab_size": 40}},
    "Swin": WINDOWS,
    "Swinv2": {**WINDOWS, "pretrained_window_sizes": [0, 0]},
    "ViT": PATCHES,
}


def _image_classifier(name: str) -> PreTrainedModel:
    config = getattr(transformers, f"{name}Config")(**CONFIGS[name], num_labels=NUM_CLASSES)
    return getattr(transformers, f"{name}ForImageClassification")(config)


def build_image_models() -> dict[str, Callable[[], PreTrainedModel]]:
    """What builds the model, by name of the architecture."""
    return {name: lambda name=name: _image_classifier(name) for name in CONFIGS}
