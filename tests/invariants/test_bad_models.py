"""What is wrong with models, patches and recipes is said, and nothing on disk changes."""

from __future__ import annotations

import pytest
from damage import check_refused, nothing, remove, set_json, truncate, write
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import (
    EditableSeq2SeqTrainingArguments,
    EditorConfig,
    LearnableEditor,
    edit,
    rmsprop,
    select_parameters,
)
from editable_hf.experiments import image_recipe, translation_recipe
from editable_hf.patches import apply_patches


def patch_of(folder):
    return apply_patches(MarianMTModel.from_pretrained(folder / "model"), folder / "patch")


def editor_of(folder):
    return EditorConfig.from_pretrained(folder / "model").build_editor()


def layers_of(layers):
    return lambda folder: select_parameters(MarianMTModel(marian_config()), layers)


def arguments(**options):
    return lambda folder: EditableSeq2SeqTrainingArguments(
        str(folder / "out"), report_to="none", use_cpu=True, **options
    )


def configuration(load_config, name, **options):
    return lambda folder: load_config(config=str(folder / "configs" / name), **options)


translation_config = configuration(translation_recipe.load_config, "iwslt_de_en/demo.yaml")
cifar_config = configuration(image_recipe.load_config, "cifar10/demo.yaml", own_section="figure_2")

# name: (damage, call, exception, message)
CASES = {
    "layers: unknown": (nothing, layers_of("decoder.layers.9"), ValueError, "matches no parameter of MarianMTModel"),
    "layers: pattern": (nothing, layers_of("*.nothing.*"), ValueError, "matches no parameter"),
    "layers: none": (nothing, layers_of([]), ValueError, "layer"),
    "layers: of an image model": (nothing, layers_of("chain3"), ValueError, "chain3"),
    "arguments: editor": (nothing, arguments(editor="sgd"), ValueError, "Unknown `editor` 'sgd'.*rmsprop"),
    "arguments: alpha": (nothing, arguments(edit_learning_rate=0.0), ValueError, "more than 0, got 0.0"),
    "arguments: negative weight": (nothing, arguments(locality_coef=-1.0), ValueError, "locality_coef.*got -1.0"),
    "arguments: no steps": (nothing, arguments(edit_max_steps=0), ValueError, "edit_max_steps.*got 0"),
    "arguments: base loss": (nothing, arguments(base_loss="mse"), ValueError, "`base_loss` must be one of.*'mse'"),
    "editor: unknown value": (
        nothing,
        lambda folder: LearnableEditor("gd", False, False, beta=0.5),
        (ValueError, TypeError),
        "beta",
    ),
    "editor: out of range": (
        nothing,
        lambda folder: LearnableEditor("rmsprop", False, False, beta=1.5),
        ValueError,
        "beta.*1.5",
    ),
    "edit: negative steps": (
        nothing,
        lambda folder: edit(MarianMTModel(marian_config()), None, rmsprop(1e-3), "*", max_steps=-1),
        ValueError,
        "`max_steps` must be 0 or more, got -1",
    ),
    "checkpoint: editor is no JSON": (write("model/editor_config.json", "{"), editor_of, ValueError, "not valid JSON"),
    "checkpoint: editor is a list": (
        write("model/editor_config.json", "[]"),
        editor_of,
        ValueError,
        "JSON object, got list",
    ),
    "checkpoint: layers": (
        set_json("model/editor_config.json", layers=5),
        editor_of,
        ValueError,
        "a list of names, got '5'",
    ),
    "checkpoint: steps": (
        set_json("model/editor_config.json", max_steps=-2),
        editor_of,
        ValueError,
        "`max_steps`.*'-2'",
    ),
    "checkpoint: NaN": (
        set_json("model/editor_config.json", hyperparameters={"learning_rate": float("nan")}),
        editor_of,
        ValueError,
        "NaN is no number of JSON",
    ),
    "checkpoint: unknown editor": (set_json("model/editor_config.json", editor="sgd"), editor_of, ValueError, "'sgd'"),
    "patch: no patch.json": (
        remove("patch/patch.json"),
        patch_of,
        ValueError,
        "patch.json is missing; give the folder",
    ),
    "patch: no payload": (remove("patch/patch.safetensors"), patch_of, ValueError, "patch.safetensors is missing"),
    "patch: cut": (truncate("patch/patch.safetensors", 200), patch_of, ValueError, "damaged: expected sha256.*again"),
    "patch: foreign JSON": (write("patch/patch.json", '{"a": 1}'), patch_of, ValueError, "damaged.*KeyError"),
    "patch: from the future": (set_json("patch/patch.json", format=9), patch_of, ValueError, "format 9.*upgrade"),
    "patch: encoding": (
        set_json("patch/patch.json", encoding="gzip"),
        patch_of,
        ValueError,
        "Unknown `encoding` 'gzip'",
    ),
    "patch: wrong type": (
        set_json("patch/patch.json", success="yes"),
        patch_of,
        ValueError,
        "true or false, got 'yes'",
    ),
    "patch: other model": (
        nothing,
        lambda folder: apply_patches(MarianMTModel(marian_config()), folder / "patch"),
        ValueError,
        "",
    ),
    "patch: twice": (
        nothing,
        lambda folder: apply_patches(patch_of(folder), folder / "patch"),
        ValueError,
        "not applied yet.*revert it first",
    ),
    "recipe: no file": (remove("configs/iwslt_de_en/demo.yaml"), translation_config, OSError, "demo.yaml"),
    "recipe: no YAML": (
        write("configs/iwslt_de_en/demo.yaml", "a: [\n"),
        translation_config,
        ValueError,
        "is not valid YAML.*see recipes",
    ),
    "images recipe: unknown row": (
        nothing,
        configuration(image_recipe.load_config, "cifar10/demo.yaml", own_section="figure_2", rows=["mine"]),
        ValueError,
        "mine",
    ),
    "checkpoint: more than any float": (
        set_json("model/editor_config.json", hyperparameters={"learning_rate": 10**400}),
        editor_of,
        ValueError,
        "finite numbers by name",
    ),
    "checkpoint: half of a surrogate pair": (
        set_json("model/editor_config.json", layers=["\ud800"]),
        editor_of,
        ValueError,
        "not valid JSON.*surrogates not allowed",
    ),
    "patch: a format that is no number": (
        write("patch/patch.json", '{"format": NaN}'),
        patch_of,
        ValueError,
        "NaN is no number of JSON",
    ),
    "patch: a format that is true": (
        set_json("patch/patch.json", format=True),
        patch_of,
        ValueError,
        "`format`.*True",
    ),
    "patch: infinite steps": (set_json("patch/patch.json", l_e_after=-(10**400)), patch_of, ValueError, "`l_e_after`"),
    "patch: a tensor without a shape": (
        set_json("patch/patch.json", tensors={"a": {"dtype": "float32", "before": "0", "after": "1"}}),
        patch_of,
        ValueError,
        "expected `tensors` to be `dtype`, `shape`",
    ),
    "patch: a shape of text": (
        set_json("patch/patch.json", tensors={"a": {"dtype": "x", "shape": ["8"], "before": "0", "after": "1"}}),
        patch_of,
        ValueError,
        "expected `tensors` to be",
    ),
    "patch: a negative shape": (
        set_json("patch/patch.json", tensors={"a": {"dtype": "x", "shape": [-1], "before": "0", "after": "1"}}),
        patch_of,
        ValueError,
        "expected `tensors` to be",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_is_refused_with_a_reason(name, valid, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check_refused(CASES[name], valid, tmp_path / "input")
