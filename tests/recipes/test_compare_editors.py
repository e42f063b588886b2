import json
from pathlib import Path

import compare_editors
import pytest

from editable_hf.experiments import compare_stages
from editable_hf.experiments.compare_recipe import load_config

CONFIGS = Path(__file__).parents[2] / "recipes/configs/compare_editors"


@pytest.fixture
def config_file(write):
    return write(
        (CONFIGS / "demo.yaml").read_text().split("cells:")[0]
        + "cells: {rmsprop: [chain3, chain1], gd: [chain3]}\ntraining: {report_to: none, use_cpu: true}\n"
    )


def test_whole_recipe_twice(config_file, tmp_path, capsys, monkeypatch):
    config = load_config(config_file, output_dir=str(tmp_path / "out"), smoke=True)
    compare_editors.main(config)
    output = capsys.readouterr().out
    assert "Table 1" in output and "paper: rmsprop" in output
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(row["name"], row["layers"]) for row in results["rows"]] == [
        ("rmsprop", "chain3"),
        ("gd", "chain3"),
        ("rmsprop", "chain1"),
    ]
    for row in results["rows"]:
        records = (tmp_path / f"out/edits-{row['name']}-{row['layers']}/edits.jsonl").read_text().splitlines()
        drawdowns = [abs(json.loads(line)["error_rate"] - row["error_rate"]) for line in records]
        assert len(drawdowns) == row["num_edits"] == 3 and row["num_images"] == 40
        assert row["drawdown"] == pytest.approx(sum(drawdowns) / 3)
    # The same edits for every editor and every choice of layers.
    requests = [
        [json.loads(line)["image_index"] for line in path.read_text().splitlines()]
        for path in sorted((tmp_path / "out").glob("edits-*/edits.jsonl"))
    ]
    assert len(requests) == 3 and all(each == requests[0] for each in requests)
    assert (tmp_path / "out/drawdown.png").stat().st_size > 5_000

    monkeypatch.setattr(compare_stages, "ErrorDrawdownEvaluator", None)  # nothing is measured again
    compare_editors.main(config)
    assert json.loads((tmp_path / "out/results.json").read_text())["rows"] == results["rows"]


def test_some_editors_only(config_file, tmp_path, capsys):
    config = load_config(config_file, output_dir=str(tmp_path / "out"), smoke=True)
    compare_editors.main(config, ["gd"])
    assert {path.name for path in (tmp_path / "out").glob("edits-*")} == {"edits-gd-chain3"}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid(path):
    config = load_config(str(path), data="somewhere", weights="w.th", seed=3)
    assert config.seed == 3 and config.data.path == "somewhere" and config.model.weights == "w.th"
    assert "rmsprop" in config.cells


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cells: {sgd: [all]}", "`cells` must give layers for editors out of gd, .* got \\['sgd'\\]"),
        ("cells: {}", "`cells` must give layers"),
        ("cells: {gd: [all]}\ntuning: {trials: 3}", "section 'tuning': .*trials"),
        ("cells: {gd: [all]}\ndata: {normalization: none}", "section 'data': `normalization` must be 'own' or"),
        ("cells: {gd: [all]}\nmodel: {architecture: vgg}", "section 'model': `architecture` must be one of"),
    ],
)
def test_wrong_configs(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(text))
