"""What holds for the YAML files of all recipes."""

from __future__ import annotations

import pytest

from editable_hf.experiments import image_recipe, translation_recipe

# how a file is read, and the sections that it cannot do without
RECIPES = {
    "translation": (translation_recipe.load_config, ""),
    "images": (image_recipe.load_config, "models: {a: {}}"),
}
every_recipe = pytest.mark.parametrize(("load_config", "rest"), RECIPES.values(), ids=RECIPES)


@every_recipe
@pytest.mark.parametrize(("text", "content"), [("", "None"), ("- model", r"\['model'\]"), ("model", "'model'")])
def test_file_without_sections(write, load_config, rest, text, content):
    with pytest.raises(ValueError, match=rf"recipe.yaml must hold sections, \['data', .*\], but holds {content}\."):
        load_config(write(text))


@every_recipe
@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("modle: {}", r"recipe.yaml: unknown sections \['modle'\]; expected \['data', .*\], output_dir and seed\."),
        ("model: tiny", r"recipe.yaml: section 'model' must hold keys and values, but holds 'tiny'\."),
        ("training: 3", r"recipe.yaml: section 'training' must hold keys and values, but holds 3\."),
        ("model: {sise: tiny}", "recipe.yaml, section 'model': .*sise"),
        (
            "training: {max_step: 2}",
            r"recipe.yaml, section 'training': \['max_step'\] are no training arguments\. Did you mean 'max_steps'\?",
        ),
        ("training: {xyzzy: 2}", r"\['xyzzy'\] are no training arguments\.$"),
    ],
)
def test_mistakes(write, load_config, rest, section, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(f"{section}\n{rest}"))


@every_recipe
def test_output_folder_and_seed(write, load_config, rest):
    path = write(f"output_dir: a\nseed: 3\n{rest}")
    for options, expected in (
        ({}, ("a", 3)),
        ({"output_dir": "b", "seed": 0}, ("b", 0)),
        ({"smoke": True}, ("a-smoke", 3)),
        ({"output_dir": "b", "smoke": True}, ("b", 3)),
    ):
        config = load_config(path, **options)
        assert (config.output_dir, config.seed) == expected


@every_recipe
def test_missing_file(tmp_path, load_config, rest):
    with pytest.raises(FileNotFoundError, match="nothing.yaml"):
        load_config(str(tmp_path / "nothing.yaml"))
