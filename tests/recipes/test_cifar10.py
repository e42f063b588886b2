from __future__ import annotations

import json
from pathlib import Path

import cifar10
import numpy as np
import pytest
from datasets import Dataset
from transformers import AutoModelForImageClassification

from editable_hf import EditorConfig
from editable_hf.experiments import image_measure, image_stages
from editable_hf.experiments.image_recipe import load_config

DEMO = Path(__file__, "../../../recipes/configs/cifar10/demo.yaml").resolve()
MODELS = """models:
  untrained: {train: false}
  control: {compare_to: untrained}
  "control, GD all": {network: control, editor: gd, layers: [all]}
  editable: {requests: random, compare_to: control}
  extra: {requests: random, extra: 16, layers: [extra]}
"""


@pytest.fixture
def config(tmp_path):
    def make(folder="out", models=MODELS, rows=None):
        path = tmp_path / "config.yaml"
        text = DEMO.read_text().split("figure_2:")[0].replace("report_to: none", "report_to: none\n  use_cpu: true")
        path.write_text(text + models)
        options = {"own_section": "figure_2", "output_dir": str(tmp_path / folder), "smoke": True, "rows": rows}
        return load_config(str(path), **options)

    return make


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_whole_recipe_twice(config, tmp_path, capsys, monkeypatch):
    config, out = config(), tmp_path / "out"
    cifar10.main(config)
    output = capsys.readouterr().out
    assert "Table 3" in output and "paper: editable c_loc=0.1, RMSProp" in output
    assert "Drawdown of editable / control:" in output
    results = json.loads((out / "results.json").read_text())
    assert [row["name"] for row in results["rows"]] == list(config.models)
    assert [row["layers"] for row in results["rows"]] == ["chain3", "chain3", "all", "chain3", "extra"]
    cells = ["edits-untrained", "edits-control", "edits-control-GD-all", "edits-editable", "edits-extra"]
    edits = [read_jsonl(out / cell / "edits.jsonl") for cell in cells]
    for row, records in zip(results["rows"], edits, strict=True):
        drawdowns = [abs(record["error_rate"] - row["error_rate"]) for record in records]
        assert len(drawdowns) == row["num_edits"] == 3 and row["num_images"] == 40
        assert row["drawdown"] == pytest.approx(sum(drawdowns) / 3)
        # The smallest validation drawdown among the alphas with which enough edits succeed.
        reliable = [trial for trial in row["tried"] if trial["success_rate"] >= 0.95]
        best = min(reliable, key=lambda trial: trial["drawdown"], default=None)
        assert best is None or row["hyperparameters"]["learning_rate"] == best["learning_rate"]
    # The same edits for every row.
    assert all([r["image_index"] for r in each] == [r["image_index"] for r in edits[0]] for each in edits)
    untrained, control = (results["rows"][place] for place in (0, 1))
    (ratio,) = control["drawdown_ratios"]
    assert ratio["mean"] == pytest.approx(control["drawdown"] / untrained["drawdown"])
    above, below = (np.load(out / cell / "resampled.npy") for cell in ("edits-control", "edits-untrained"))
    low, high = np.percentile(above[below > 0] / below[below > 0], [2.5, 97.5])
    assert (ratio["low"], ratio["high"]) == pytest.approx((low, high))
    assert (out / "drawdown.png").stat().st_size > 5_000

    # The networks: ordinary checkpoints, trained for equally many updates, edits for some of them only.
    names = {path.name for path in out.glob("network-*")}
    assert names == {"network-control", "network-editable", "network-extra"}
    states = {name: json.loads((out / name / "trainer_state.json").read_text()) for name in names}
    assert {state["global_step"] for state in states.values()} == {2}
    for name in names:
        AutoModelForImageClassification.from_pretrained(out / name)
        assert EditorConfig.from_pretrained(out / name).layers == ["extra" if name == "network-extra" else "chain3"]

    monkeypatch.setattr(image_measure, "ErrorDrawdownEvaluator", None)  # nothing is measured or trained again
    monkeypatch.setattr(image_stages, "EditableImageTrainer", None)
    cifar10.main(config)
    assert json.loads((out / "results.json").read_text())["rows"] == results["rows"]


BASELINES = """figure_2: {rows: [plain, again], num_edits: 100}
models:
  editable: {requests: random}
  plain: {train: false, num_trials: 3}
  again: {network: editable, num_trials: 3}
  ewc: {train: false, method: ewc, num_trials: 3, compare_to: plain}
  dknn: {network: editable, method: dknn, neighbors: 3, layers: [chain2, chain3]}
  cnp: {requests: random, method: cnp}
  closed: {train: false, method: rank_one, layers: [head]}
"""


@pytest.mark.slow
def test_baselines_and_figure_2(config, tmp_path, capsys):
    cifar10.main(config(models=BASELINES, rows=["plain", "ewc"]))
    out = tmp_path / "out"
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["plain", "ewc"]
    assert not list(out.glob("network-*")) and "Figure 2 waits for these rows: again" in capsys.readouterr().out
    plain, penalized = rows
    assert plain["tuned"]["num_trials"] == 2 and plain["editor"] == "rmsprop"  # a smoke run has fewer trials
    assert penalized["editor"] == "rmsprop+ewc" and set(penalized["hyperparameters"]) == {
        "learning_rate",
        "beta",
        "weight",
    }
    assert (out / "edits-ewc/fisher.safetensors").exists()

    # One row more: the others are shown beside it, and not made again.
    cifar10.main(config(models=BASELINES, rows=["dknn", "cnp", "closed"]))
    output = capsys.readouterr().out
    assert "[edits-plain]" not in output and "[network-editable] starts" in output
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["plain", "ewc", "dknn", "cnp", "closed"]
    neighbors, condition, closed = rows[2:]
    assert (neighbors["editor"], neighbors["layers"], neighbors["success_rate"]) == (
        "flip labels",
        "chain2,chain3",
        1.0,
    )
    assert neighbors["memory"] > 0 and condition["editor"] == "condition vector"
    assert (closed["editor"], closed["layers"], closed["success_rate"]) == ("rank one", "head", 1.0)
    assert EditorConfig.from_pretrained(out / "network-cnp").layers == ["condition"]

    cifar10.main(config(models=BASELINES))
    assert "Figure 2. Edits that took a step" in capsys.readouterr().out
    cifar10.main(config(models=BASELINES, rows=["editable"]))
    assert len(json.loads((out / "results.json").read_text())["rows"]) == 7
    for name in ("drawdown_by_class", "edit_space", "explained_variance"):
        assert {row["model"] for row in Dataset.from_parquet(str(out / f"{name}.parquet"))} == {"plain", "again"}
        assert (out / f"{name}.png").stat().st_size > 5_000
    summary = json.loads((out / "figure_2.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["plain", "again"] and summary["seed"] == 0


@pytest.mark.slow
def test_killed_run_continues_to_the_same_result(config, tmp_path, monkeypatch):
    def patched(folder):
        loaded = config(folder)
        # An update an epoch: in the middle of an epoch no Trainer resumes random crops.
        steps = {"save_steps": 1, "max_steps": 3, "per_device_train_batch_size": 100}
        for row in loaded.models.values():
            row.training |= steps if row.train and row.network is None else {}
        return loaded

    class Killed(Exception):
        pass

    cifar10.main(patched("whole"))
    trainer, evaluator = image_stages.EditableImageTrainer, image_measure.ErrorDrawdownEvaluator
    step, measure, measured = trainer.training_step, evaluator._measure, []

    def step_until_one(self, *args, **kwargs):
        if self.edit_dataset is not None and self.state.global_step == 2:
            raise Killed
        return step(self, *args, **kwargs)

    def measure_once(self, requests, *args, **kwargs):
        measured.append(len(requests))
        if len(measured) == 2:
            raise Killed
        return measure(self, requests, *args, **kwargs)

    for target, name, patch in ((trainer, "training_step", step_until_one), (evaluator, "_measure", measure_once)):
        with monkeypatch.context() as context:
            context.setattr(target, name, patch)
            with pytest.raises(Killed):
                cifar10.main(patched("killed"))
    cifar10.main(patched("killed"))

    def without_times(folder):
        rows = json.loads((tmp_path / folder / "results.json").read_text())["rows"]
        for row in rows:
            del row["edit_seconds"], row["intervals"]["edit_seconds"]
        return rows

    assert without_times("killed") == without_times("whole")


def test_unknown_layers_are_found_before_anything_is_trained(config, monkeypatch):
    config = config()
    config.models["editable"].layers = ["chain7"]
    monkeypatch.setattr(image_stages, "EditableImageTrainer", None)
    with pytest.raises(ValueError, match="has no 'chain7'; its chains are chain1 to chain3"):
        cifar10.main(config)
