from __future__ import annotations

import json
from pathlib import Path

import imagenet
import pytest
import torch
from image_folders import make_image_folders
from rounding import assert_same_up_to_rounding
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, set_seed

from editable_hf.experiments.image_recipe import load_config
from editable_hf.models import (
    DENSENET_SIZES,
    DenseNetConfig,
    DenseNetForImageClassification,
    StemResNetConfig,
    StemResNetForImageClassification,
)

CONFIGS = Path(__file__, "../../../recipes/configs/imagenet").resolve()
TINY = {"growth_rate": 4, "block_config": [1, 1, 2, 1], "num_init_features": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_image_folders(tmp_path_factory.mktemp("images"))


def smoke_config(name, tmp_path, folders, weights=None):
    path = tmp_path / "config.yaml"
    text = (CONFIGS / f"{name}.yaml").read_text().replace("extra: 4096", "extra: 16")
    path.write_text(text.replace("source: path/to/imagenet,", "source: path/to/imagenet, image_size: 32,"))
    config = load_config(
        str(path), data=str(folders / "imagenet"), weights=weights, output_dir=str(tmp_path / "out"), smoke=True
    )
    config.training |= {"use_cpu": True, "disable_tqdm": True}
    config.evaluation.num_workers = 0
    return config


def timm_densenet(folder, monkeypatch):
    """A DenseNet in timm's layout: `model.safetensors` with its names, and its own `config.json`."""
    monkeypatch.setitem(DENSENET_SIZES, "densenet_tiny", TINY)
    set_seed(0)
    model = DenseNetForImageClassification(DenseNetConfig(**TINY, num_labels=6))
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    content = {"architecture": "densenet_tiny", "num_classes": 6, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (folder / "config.json").write_text(json.dumps(content))
    return model


def local_resnet(folder):
    set_seed(0)
    StemResNetForImageClassification(
        StemResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=6)
    ).save_pretrained(folder)


def test_paper_config_with_resnet(tmp_path, folders, capsys):
    local_resnet(tmp_path / "weights")
    imagenet.main(smoke_config("paper", tmp_path, folders, str(tmp_path / "weights")))
    output = capsys.readouterr().out
    assert "Table 4" in output and "30.61%" in output
    results = json.loads((tmp_path / "out/results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == [
        f"{kind}, {layers}" for kind in ("pretrained", "distillation", "editable") for layers in ("chain3", "extra")
    ]
    assert results["test_name"] == "val of the folder imagenet (24 images)"
    # A new block changes nothing until it is edited or trained.
    assert rows["pretrained, extra"]["error_rate"] == rows["pretrained, chain3"]["error_rate"]
    assert rows["pretrained, extra"]["num_edits"] == 3
    start, block, trained = (
        AutoModelForImageClassification.from_pretrained(tmp_path / "out" / name)
        for name in ("start", "network-pretrained-extra", "network-editable-extra")
    )
    pixels = torch.randn(2, 3, 32, 32)
    assert_same_up_to_rounding(block.eval()(pixels).logits, start.eval()(pixels).logits)
    before, after = block.backbone.state_dict(), trained.backbone.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any(".extra." in name for name in moved) and any("stages.0" in name for name in moved)


@pytest.mark.slow
def test_densenet_in_timms_layout(tmp_path, folders, monkeypatch, capsys):
    model = timm_densenet(tmp_path / "weights", monkeypatch)
    config = smoke_config("paper_densenet169", tmp_path, folders, str(tmp_path / "weights"))
    config.rows = ["pretrained, chain3"]
    imagenet.main(config)
    assert "24.38%" in capsys.readouterr().out
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "out/start")
    assert isinstance(loaded, DenseNetForImageClassification)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["name"] for row in results["rows"]] == config.rows


def test_weights_of_other_classes(tmp_path, folders):
    set_seed(0)
    StemResNetForImageClassification(
        StemResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_labels=7)
    ).save_pretrained(tmp_path / "weights")
    with pytest.raises(ValueError, match="tells 7 classes apart, but the data has 6"):
        imagenet.main(smoke_config("paper", tmp_path, folders, str(tmp_path / "weights")))
