from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import editable_hf
from editable_hf import edit, edited

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in editable_hf.__all__ if not name.startswith("__")])
def test_public_names_are_in_the_readme(name):
    assert f"`{name}`" in README or f"`{name}(" in README


EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_are_short_and_compile(code):
    compile(code, "README.md", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


@pytest.mark.slow
def test_example_of_the_baselines_runs():
    pytest.importorskip("sklearn", reason="needs the vision extra")
    (code,) = (code for code in EXAMPLES if "baselines" in code)
    names = {}
    exec(code, names)
    model, constraint = names["neighbors"], names["constraint"]
    with edited(model, edit(model, constraint, names["flip_labels"](), "labels")):
        assert model(**constraint.inputs).logits.argmax() == constraint.target


def test_files_named_in_commands_exist():
    commands = re.findall(r"`((?:accelerate|python) [^`]+)`", README)
    files = [word for command in commands for word in shlex.split(command) if word.endswith((".py", ".yaml"))]
    assert len(files) >= 4
    assert not [file for file in files if not (ROOT / file).exists()]
