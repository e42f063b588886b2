from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import transformers

from editable_hf import __version__
from editable_hf.experiments import report
from editable_hf.experiments.paper_tables import TABLE_6
from editable_hf.experiments.report import format_ratios, format_table, write_results

REPOSITORY = Path(__file__).parents[2]
NO_RESULTS = {"collect_result.py", "results_page.py"}  # they print, or pass on those of others
PROGRAMS = [
    path
    for path in sorted(
        path for folder in ("recipes", "scripts", "benchmarks") for path in REPOSITORY.glob(f"{folder}/*.py")
    )
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8") and path.name not in NO_RESULTS
]

ROW = {
    "name": "editable",
    "bleu": 31.2345,
    "bleu_detok": 30.0,
    "bleu_drawdown": 0.12345,
    "bleu_drawdown_signed": -0.05,
    "success_rate": 0.975,
    "verified_rate": 1.0,
    "num_steps": 2.5,
    "already_satisfied": 0.1,
    "outputs_changed": 0.333,
    "num_edits": 40,
    "num_sentences": 200,
    "intervals": {"bleu_drawdown": [0.1, 0.15]},
}


def test_table():
    lines = format_table([*TABLE_6, ROW]).split("\n")
    assert len(lines) == 2 + 3 + 1
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == [
        *("BLEU", "detok.", "drawdown", "95%", "interval", "signed", "success", "verified", "steps", "0", "steps"),
        *("changed", "edits", "sentences"),
    ]
    assert lines[-1].split() == [
        *("editable", "31.23", "30.00", "0.123", "0.100-0.150", "-0.050", "97.5%", "100.0%", "2.50", "10.0%", "33.3%"),
        *("40", "200"),
    ]
    # The paper's rows have no entry in most columns, and keep their place all the same.
    assert lines[2].split()[-4:] == ["34.77", "0.760", "100.0%", "2.35"]
    end = lines[0].index("success") + len("success")
    assert lines[2][:end].endswith("100.0%") and lines[-1][:end].endswith("97.5%")


def test_ratios():
    ratio = {"to": "baseline", "mean": 0.456, "low": 0.4, "high": 0.512}
    rows = [{"name": "baseline"}, {**ROW, "drawdown_ratios": [ratio, {**ratio, "to": "published", "mean": 0.5}]}]
    assert format_ratios(rows) == [
        "Drawdown of editable / baseline: 0.46 (95% interval 0.40-0.51)",
        "Drawdown of editable / published: 0.50 (95% interval 0.40-0.51)",
    ]
    assert format_ratios(rows[:1]) == []


def test_table_6_is_the_papers():
    numbers = [(row["bleu"], row["bleu_drawdown"], row["success_rate"], row["num_steps"]) for row in TABLE_6]
    assert numbers == [(34.77, 0.76, 1.0, 2.35), (34.80, 0.35, 1.0, 3.07), (34.81, 0.17, 1.0, 5.5)]


def test_results_hold_what_is_needed_to_get_them_again(tmp_path):
    path = tmp_path / "results.json"
    config = {"data": {"source": Path("corpus")}, "name": "Zürich"}
    write_results(path, [ROW], config, 3, test_name="valid")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["rows"] == [ROW]
    assert content["config"] == {"data": {"source": "corpus"}, "name": "Zürich"}
    assert (content["seed"], content["test_name"]) == (3, "valid")
    assert content["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert content["versions"]["numpy"] == np.__version__ and content["versions"]["pillow"] == PIL.__version__
    assert content["versions"]["transformers"] == transformers.__version__
    assert content["versions"]["editable_hf"] == __version__
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert content["commit"] is None or isinstance(content["commit"], str)
    assert os.listdir(tmp_path) == ["results.json"]


def test_failed_write_keeps_the_old_results(tmp_path):
    path = tmp_path / "results.json"
    write_results(path, [ROW], {}, 0)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_results(path, [{("not", "a key"): 1}], {}, 0)
    assert path.read_bytes() == before


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Runs git in a new repository, `tmp_path`."""
    for name in os.environ:
        if name.startswith("GIT_"):  # a hook that runs the tests has its own repository in them
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]

    def run(*command):
        done = subprocess.run(["git", *identity, *command], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    run("init", "--quiet")
    return run


def load_report(folder):
    """`report.py` as a process loads it where the package lies in `folder`."""
    path = folder / "editable_hf/experiments/report.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(report.__file__, path)
    spec = importlib.util.spec_from_file_location("report_elsewhere", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@needs_git
def test_commit_is_the_one_that_was_loaded(git, tmp_path):
    (tmp_path / "model.py").write_text("1")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    loaded, first = load_report(tmp_path), git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "model.py").write_text("2")
    edited = load_report(tmp_path)
    git("commit", "--quiet", "--all", "--message", "second")
    second = git("rev-parse", "--short=12", "HEAD")
    assert loaded.environment()["commit"] == first != second
    assert edited.environment()["commit"] == f"{first}-dirty"
    assert load_report(tmp_path).environment()["commit"] == second


@needs_git
def test_installed_package_has_no_commit(git, tmp_path):
    git("commit", "--quiet", "--allow-empty", "--message", "a project with its environment in it")
    assert load_report(tmp_path / "venv/lib/site-packages").environment()["commit"] is None


def test_no_commit_without_git(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load_report(tmp_path).environment()["commit"] is None


def called(path, seen=()):
    """Names of the functions that a program calls, itself or in the modules of experiments/ that it imports from."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    used = {
        REPOSITORY / f"{each.replace('.', '/')}.py" for each in modules if each.startswith("editable_hf.experiments.")
    }
    for each in used - {path, *seen}:
        names |= called(each, (*seen, path))
    return names


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_every_program_says_what_its_results_depend_on(path):
    assert called(path) & {"write_results", "environment", "finish"}  # `finish` of timing.py writes it


def test_there_are_programs():
    assert len(PROGRAMS) >= 10
