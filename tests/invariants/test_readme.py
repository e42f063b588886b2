from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import editable_hf

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name in editable_hf.__all__ if not name.startswith("__")])
def test_public_names_are_in_the_readme(name):
    assert f"`{name}`" in README or f"`{name}(" in README


def test_example_has_twenty_lines_and_compiles():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    compile(code, "README.md", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


def test_files_named_in_commands_exist():
    commands = re.findall(r"`((?:accelerate|python) [^`]+)`", README)
    files = [word for command in commands for word in shlex.split(command) if word.endswith((".py", ".yaml"))]
    assert len(files) >= 4
    assert not [file for file in files if not (ROOT / file).exists()]
