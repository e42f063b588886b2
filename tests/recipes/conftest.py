from __future__ import annotations

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes the YAML file of a recipe."""

    def write_yaml(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_yaml
