from __future__ import annotations

import json
from pathlib import Path

import natural_adversarial
import pytest
import torch
from image_folders import make_image_folders
from transformers import ResNetConfig, ResNetModel, set_seed

from editable_hf.experiments import adversarial_stages, image_measure, image_stages
from editable_hf.experiments.image_recipe import load_config
from editable_hf.models import StemResNetConfig, StemResNetForImageClassification

CONFIGS = Path(__file__, "../../../recipes/configs/natural_adversarial").resolve()
SIZES = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}


def read(path):
    return json.loads(path.read_text())


def without_times(content):
    return [{key: value for key, value in row.items() if key not in ("edit_seconds", "intervals")} for row in content]


@pytest.mark.slow
def test_demo_twice(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    config = load_config(str(CONFIGS / "demo.yaml"), own_section="adversarial", output_dir=str(out), smoke=True)
    config.training["use_cpu"] = True
    natural_adversarial.main(config)
    output = capsys.readouterr().out
    assert "paper: editable, match ranks" in output and "edits in a row" in output

    # What the starting network gets wrong, divided without overlap; training never sees the ranks of the others.
    examples = read(out / "examples/examples.json")
    parts = examples["train"] + examples["tuning"] + examples["evaluation"]
    assert sorted(parts) == list(range(len(examples["rows"])))
    assert len(examples["evaluation"]) == 4 and examples["counts"][0] == 0
    assert sum(examples["train_counts"]) == len(examples["train"])
    results = read(out / "results.json")
    assert [row["name"] for row in results["rows"]] == list(config.models)
    edits = [json.loads(line) for line in (out / "edits-distilled/edits.jsonl").read_text().splitlines()]
    assert {edit["image_index"] for edit in edits} <= set(examples["evaluation"])
    assert all(edit["target"] == edit["label"] for edit in edits)
    sequences = results["sequences"]
    assert [row["name"] for row in sequences] == config.adversarial.sequence_rows
    assert torch.tensor(sequences[0]["error_rates"]).shape == (2, 3)
    assert [row["name"] for row in results["generalization"]] == config.adversarial.generalization_rows
    for picture in ("drawdown.png", "sequences.png", "examples/ranks.png"):
        assert (out / picture).stat().st_size > 5_000

    for module, name in (
        (image_stages, "EditableImageTrainer"),
        (image_measure, "ErrorDrawdownEvaluator"),
        (adversarial_stages, "evaluate_sequences"),
        (adversarial_stages, "evaluate_generalization"),
    ):
        monkeypatch.setattr(module, name, None)
    natural_adversarial.main(config)
    again = read(out / "results.json")
    assert {key: again[key] for key in ("rows", "sequences")} == {key: results[key] for key in ("rows", "sequences")}


def test_folder_of_examples(tmp_path, capsys):
    folders = make_image_folders(tmp_path)
    set_seed(0)
    StemResNetForImageClassification(StemResNetConfig(**SIZES, num_labels=6)).save_pretrained(tmp_path / "weights")
    ResNetModel(ResNetConfig(**SIZES, layer_type="basic")).save_pretrained(tmp_path / "embedding")
    path = tmp_path / "config.yaml"
    text = (CONFIGS / "paper.yaml").read_text().replace("extra: 4096", "extra: 16")
    path.write_text(text.replace("source: path/to/imagenet,", "source: path/to/imagenet, image_size: 32,"))
    config = load_config(
        str(path),
        own_section="adversarial",
        data=str(folders / "imagenet"),
        natural_adversarial=str(folders / "adversarial"),
        embedding=str(tmp_path / "embedding"),
        weights=str(tmp_path / "weights"),
        output_dir=str(tmp_path / "out"),
        smoke=True,
    )
    config.training |= {"use_cpu": True, "disable_tqdm": True}
    config.evaluation.num_workers = 0
    natural_adversarial.main(config)
    assert "Table 5" in capsys.readouterr().out
    examples = read(tmp_path / "out/examples/examples.json")
    assert len(examples["rows"]) == 12
    assert [len(examples[part]) for part in ("evaluation", "tuning", "train")] == [4, 2, 6]
    assert sum(examples["counts"]) == 12 and examples["top_100"] == pytest.approx(1)
    neighbors = read(tmp_path / "out/neighbors/neighbors.json")
    assert len(neighbors) == 12 and all(0 <= index < 24 for index in neighbors)


def test_no_mistakes(tmp_path, monkeypatch):
    config = load_config(str(CONFIGS / "demo.yaml"), own_section="adversarial", output_dir=str(tmp_path), smoke=True)
    config.training["use_cpu"] = True

    def always_right(model, dataset, config):
        return torch.nn.functional.one_hot(torch.tensor(dataset.with_format(None)["label"]), 10).float()

    monkeypatch.setattr(adversarial_stages, "_logits", always_right)
    with pytest.raises(ValueError, match="at least 4 examples, .* but 'mistakes' has 0; hold out more"):
        natural_adversarial.main(config)
