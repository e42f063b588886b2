import copy

import pytest
import torch
from patches.patch_checks import LAYER, made_up_result
from transformers import ResNetConfig, ResNetForImageClassification

from editable_hf import EditorConfig
from editable_hf.patches import Patch


@pytest.fixture(scope="session")
def resnet_template():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1]}
        return ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=3, **sizes)).eval()


@pytest.fixture
def tiny_resnet(resnet_template):
    return copy.deepcopy(resnet_template)


@pytest.fixture
def make_patch():
    """Makes a patch of made-up changes to `layers` of a model, without changing it."""

    def make(model, layers=LAYER, seed=0, scale=1e-3, **options):
        result = made_up_result(model, layers, seed, scale)
        request = {"source": "ein test .", "target": "a test ."}
        return Patch.from_edit(model, result, request=request, editor=EditorConfig(), layers=layers, **options)

    return make
