from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tests/stress/interrupt_recipes.py"

# Two stages of 0.2 s; nothing of the package, so that it starts at once. `{flaw}` is what is wrong with it.
RECIPE = """
import json, sys, time
from pathlib import Path

out = Path(sys.argv[3])
out.mkdir(exist_ok=True)
starts = out / "starts.txt"
starts.write_text(starts.read_text() + "x" if starts.exists() else "x")
for name in ("first", "second"):
    folder, partial = out / name, out / (name + ".partial")
    if folder.exists():
        print(f"[{{name}}] already there")
        {flaw}
        continue
    print(f"[{{name}}] starts")
    partial.mkdir(exist_ok=True)
    time.sleep(0.2)
    result = {{"seed": 0, "folder": str(out), "edit_seconds": time.time()}}
    (partial / "results.json").write_text(json.dumps(result))
    (partial / "stage.json").write_text("{{}}")
    partial.rename(folder)
(out / "edits.jsonl").write_text(json.dumps({{"starts": {starts}}}) + "\\n")
"""


@pytest.fixture
def module():
    spec = importlib.util.spec_from_file_location("interrupt_recipes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recipe(module, tmp_path, monkeypatch):
    """Writes a made-up recipe, the only one."""
    monkeypatch.setattr(module, "RECIPES", tmp_path)
    monkeypatch.setattr(module, "CONFIGS", {"fake": "none.yaml"})

    def write(flaw="pass", starts="0"):
        (tmp_path / "fake.py").write_text(RECIPE.format(flaw=flaw, starts=starts))

    return write


@pytest.fixture
def interrupt(module, recipe, tmp_path):
    """Runs the script's work with a made-up recipe."""

    def run(**wrong):
        recipe(**wrong)
        output = tmp_path / "out"
        output.mkdir()
        return module.interrupt("fake", 4, 0, output)

    return run


def test_recipe_that_continues_passes(interrupt):
    row = interrupt()
    assert row["kills"] == len(row["moments"]) == 4 and row["runs"] >= 1
    assert row["different"] == row["repeated"] == 0
    assert row["files"] == 5  # two results, two descriptions of stages, one list of edits
    assert {moment["stage"] for moment in row["moments"]} <= {"none", "first", "second"}


def test_result_that_depends_on_kills_is_found(interrupt):
    row = interrupt(starts="len(starts.read_text())")
    assert row["different"] > 0 and row["repeated"] == 0
    assert {Path(name).name for name in row["different_files"]} == {"edits.jsonl"}


def test_stage_that_is_touched_again_is_found(interrupt):
    row = interrupt(flaw='(folder / "stage.json").write_text("{}")')
    assert row["different"] == 0 and any(name.endswith("/first") for name in row["repeated_stages"])


def test_recipe_that_fails_is_said(interrupt):
    with pytest.raises(SystemExit, match=r"fake.py .* ended with 1:\n(.|\n)*ZeroDivisionError"):
        interrupt(starts="1 / 0")


def test_file_says_what_it_is_of(module, recipe, tmp_path, capsys):
    recipe()
    args = Namespace(recipes=["fake"], kills=1, seed=5, output_dir=str(tmp_path / "out"))
    module.main(args)
    content = json.loads((tmp_path / "out/interruptions.json").read_text())
    assert [(row["name"], row["kills"], row["different"]) for row in content["rows"]] == [("fake", 1, 0)]
    assert content["config"] == vars(args) and content["seed"] == 5 and "train_loss" in content["uncompared"]
    assert {"versions", "commit", "machine"} <= set(content) and "finished stages touched" in capsys.readouterr().out


def test_all_recipes_are_there(module):
    assert {path.stem for path in module.RECIPES.glob("*.py") if "__main__" in path.read_text()} == set(module.CONFIGS)
    assert all((module.RECIPES / "configs" / name).is_file() for name in module.CONFIGS.values())
