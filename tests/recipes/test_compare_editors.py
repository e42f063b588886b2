import json
from pathlib import Path

import compare_editors
import pytest

from editable_hf.experiments.image_recipe import load_config

DEMO = Path(__file__).parents[2] / "recipes/configs/compare_editors/demo.yaml"


def test_whole_recipe(write, tmp_path, capsys):
    rows = "models:\n" + "\n".join(
        f"  '{editor}, {layers}': {{train: false, editor: {editor}, layers: [{layers}], num_trials: 2}}"
        for editor, layers in (("rmsprop", "chain3"), ("rmsprop", "chain1"))
    )
    text = DEMO.read_text().split("models:")[0].replace("report_to: none", "report_to: none, use_cpu: true")
    compare_editors.main(load_config(write(text + rows), output_dir=str(tmp_path / "out"), smoke=True))
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["name"] for row in results["rows"]] == ["rmsprop, chain3", "rmsprop, chain1"]
    first, second = capsys.readouterr().out.split("Table 1.")[1].split("Table 2")
    assert "paper: rmsprop" in first and first.count("\nrmsprop, chain") == 1 and second.count("\nrmsprop, chain") == 2


def test_best_layers_are_those_of_tuning():
    found = [("gd", "all", 0.2), ("gd", "chain1", 0.1), ("adam", "all", 0.3)]
    rows = [{"editor": editor, "layers": layers, "tuned": {"drawdown": value}} for editor, layers, value in found]
    assert compare_editors.best_layers(rows) == rows[1:]


@pytest.mark.parametrize("path", sorted(DEMO.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_configs_are_valid(path):
    config = load_config(str(path))
    assert all(name == f"{row.training['editor']}, {row.layers[0]}" for name, row in config.models.items())
    assert all(row.method.num_trials >= 24 and not row.train for row in config.models.values())
