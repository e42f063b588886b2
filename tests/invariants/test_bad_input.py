"""What is wrong is said: what was expected, what arrived, what to do. Nothing on disk changes."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from tiny_images import tiny_resnet
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import (
    ClassConstraint,
    EditableSeq2SeqTrainingArguments,
    EditorConfig,
    LearnableEditor,
    edit,
    load_image_data,
    load_translation_data,
    make_edit_requests,
    read_edit_requests,
    request_constraint,
    rmsprop,
    select_parameters,
)
from editable_hf.cli import main
from editable_hf.data import text_lines
from editable_hf.data.image_requests import ImageEditRequests, make_image_requests
from editable_hf.data.tokenizer import train_tokenizer
from editable_hf.hub import Patch, apply_patches

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def valid(tmp_path_factory, translator_template, tokenizer):
    """Valid input of each kind, which the cases damage: each gets its own copy."""
    folder = tmp_path_factory.mktemp("valid")
    corpus = folder / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            (corpus / f"{split}.{language}").write_text("ein hund .\nzwei hunde .\ndrei .\n")
    model = translator_template.float()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    EditorConfig().save_pretrained(folder / "model")
    params = {name: p.detach() + 0.01 for name, p in select_parameters(model, "last_decoder_layer").items()}
    result = edit(model, lambda *_: torch.tensor(-1.0), rmsprop(1e-3), "last_decoder_layer")._replace(params=params)
    fix = {"source": "ein", "target": "a"}
    Patch.from_edit(model, result, request=fix, editor=EditorConfig(), layers="*").save_pretrained(folder / "patch")
    (folder / "requests.jsonl").write_text('{"source": "ein hund .", "target": "a dog ."}\n')
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "images" / split / name / "1.png")
    shutil.copytree(RECIPES / "configs", folder / "configs")
    return folder


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write(name, content):
    def damage(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def set_json(name, **values):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return damage


def truncate(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def nothing(folder):
    pass


def corpus(**options):
    return lambda folder: load_translation_data(str(folder / "corpus"), **options)


def requests_of(folder):
    model = MarianMTModel.from_pretrained(folder / "model", attn_implementation="eager")
    return read_edit_requests(folder / "requests.jsonl", model, None)


def patch_of(folder):
    return apply_patches(MarianMTModel.from_pretrained(folder / "model"), folder / "patch")


def editor_of(folder):
    return EditorConfig.from_pretrained(folder / "model").build_editor()


def constraint_of(**request):
    usual = {"source_ids": [5, 2], "target_ids": [6, 2], "alternatives": [[7, 2]]}
    return lambda folder: request_constraint({**usual, **request}, MarianMTModel(marian_config()))


def layers_of(layers):
    return lambda folder: select_parameters(MarianMTModel(marian_config()), layers)


def arguments(**options):
    return lambda folder: EditableSeq2SeqTrainingArguments(
        str(folder / "out"), report_to="none", use_cpu=True, **options
    )


def configuration(module, name, **options):
    def load(folder):
        sys.path.insert(0, str(RECIPES))
        try:
            return importlib.import_module(module).load_config(config=str(folder / "configs" / name), **options)
        finally:
            sys.path.remove(str(RECIPES))

    return load


def images_of(**options):
    return lambda folder: load_image_data("folder", path=folder / "images", **options)


translation_config = configuration("recipe_config", "demo.yaml")
cifar_config = configuration("image_recipe", "cifar10/demo.yaml", own_section="figure_2")
compare = configuration("compare_config", "compare_editors/demo.yaml")

# name: (damage, call, exception, message)
CASES = {
    "corpus: no folder": (lambda folder: shutil.rmtree(folder / "corpus"), corpus(), OSError, "corpus"),
    "corpus: empty folder": (
        lambda folder: [path.unlink() for path in (folder / "corpus").iterdir()],
        corpus(),
        FileNotFoundError,
        "train",
    ),
    "corpus: a language is missing": (remove("corpus/test.en"), corpus(), FileNotFoundError, "Expected test.en.*add"),
    "corpus: a split is missing": (
        lambda folder: [(folder / f"corpus/valid.{language}").unlink() for language in ("de", "en")],
        corpus(),
        FileNotFoundError,
        "validation",
    ),
    "corpus: uneven": (write("corpus/train.en", "a dog .\n"), corpus(), ValueError, "3 lines.*1"),
    "corpus: an empty line": (write("corpus/train.en", "a .\n\nb .\n"), corpus(), ValueError, "line 2"),
    "corpus: an empty file": (write("corpus/train.en", ""), corpus(), ValueError, "train.en"),
    "corpus: not UTF-8": (
        write("corpus/train.en", b"a\nb\xe4\nc\n"),
        corpus(),
        ValueError,
        "UTF-8, but line 2.*iconv",
    ),
    "corpus: binary": (write("corpus/train.en", bytes(range(256))), corpus(), ValueError, "UTF-8, but line"),
    "corpus: subwords": (
        write("corpus/train.de", "ei@@ n .\nzw@@ ei .\ndr@@ ei .\n"),
        corpus(),
        ValueError,
        "cut into subword units.*before BPE",
    ),
    "corpus: cut .gz": (
        lambda folder: (
            (folder / "corpus/train.en").unlink(),
            (folder / "corpus/train.en.gz").write_bytes(gzip.compress(b"a\nb\nc\n")[:-6]),
        ),
        corpus(),
        ValueError,
        "whole .gz file, but it is cut short",
    ),
    "corpus: twice": (
        write("corpus/train.en.gz", gzip.compress(b"a\nb\nc\n")),
        corpus(),
        ValueError,
        "one version of train.en.*remove all but one",
    ),
    "corpus: other language": (nothing, corpus(target_lang="fr"), FileNotFoundError, "fr"),
    "corpus: unknown split name": (
        nothing,
        corpus(split_names={"train": "training"}),
        (ValueError, OSError),
        "training",
    ),
    "corpus: negative limit": (nothing, corpus(max_train=-1), ValueError, "limit for .* is -1; raise `max_train`"),
    "tokenizer: no text": (nothing, lambda folder: train_tokenizer([], 100), ValueError, "text"),
    "tokenizer: vocabulary too large": (
        nothing,
        lambda folder: train_tokenizer(["a b"], 5000),
        ValueError,
        "vocab_size",
    ),
    "tokenizer: vocabulary too small": (
        nothing,
        lambda folder: train_tokenizer(["a b c"], 2),
        ValueError,
        "vocab_size",
    ),
    "requests: no file": (remove("requests.jsonl"), requests_of, FileNotFoundError, "requests.jsonl"),
    "requests: not JSON": (write("requests.jsonl", "source\ttarget\n"), requests_of, ValueError, "line 1: expected"),
    "requests: a list": (write("requests.jsonl", '["a", "b"]\n'), requests_of, ValueError, "line 1: expected"),
    "requests: no target": (write("requests.jsonl", '{"source": "a"}\n'), requests_of, ValueError, "line 1: expected"),
    "requests: a number": (
        write("requests.jsonl", '{"source": "a", "target": 5}\n'),
        requests_of,
        ValueError,
        "must be strings",
    ),
    "requests: nested too deeply": (
        write("requests.jsonl", "[" * 100_000),
        requests_of,
        ValueError,
        "line 1: expected",
    ),
    "requests: not UTF-8": (
        write("requests.jsonl", b'{"source": "\xe4"}'),
        requests_of,
        ValueError,
        "UTF-8, but line 1",
    ),
    "requests: empty file": (
        write("requests.jsonl", "\n"),
        requests_of,
        ValueError,
        "holds no edit request; write one",
    ),
    "requests: empty source": (
        nothing,
        lambda folder: make_edit_requests(None, None, ["  "], targets=["a"]),
        ValueError,
        "source of edit request 0 is empty",
    ),
    "requests: none": (
        nothing,
        lambda folder: make_edit_requests(None, None, []),
        ValueError,
        "at least one sentence",
    ),
    "requests: fewer targets": (
        nothing,
        lambda folder: make_edit_requests(None, None, ["a", "b"], targets=["a"]),
        ValueError,
        "2 sources but 1 targets",
    ),
    "constraint: no source": (nothing, constraint_of(source_ids=[]), ValueError, "empty source"),
    "constraint: no target": (nothing, constraint_of(target_ids=[]), ValueError, "target"),
    "constraint: no alternative": (nothing, constraint_of(alternatives=[]), ValueError, "alternative"),
    "constraint: the target alone": (nothing, constraint_of(alternatives=[[6, 2]]), ValueError, "alternative"),
    "constraint: too long": (nothing, constraint_of(target_ids=[6] * 99), ValueError, "99|long"),
    "image requests: unknown class": (
        nothing,
        lambda folder: edit(
            tiny_resnet(), ClassConstraint({"pixel_values": torch.zeros(1, 3, 8, 8).double()}, 9), rmsprop(1e-3), "all"
        ),
        ValueError,
        "a class from 0 to 4, got 9",
    ),
    "image requests: more than images": (
        nothing,
        lambda folder: make_image_requests(3, [0, 1, 0], 2, 4, seed=0),
        ValueError,
        "4",
    ),
    "image requests: a single class": (
        nothing,
        lambda folder: make_image_requests(3, [0, 0, 0], 1, 1, seed=0),
        ValueError,
        "class",
    ),
    "image requests: index beyond the images": (
        nothing,
        lambda folder: ImageEditRequests(
            [{"pixel_values": 0, "labels": 0}], requests=Dataset.from_list([{"image_index": 7, "target": 1}])
        ),
        ValueError,
        "7; give the split",
    ),
    "images: no folder": (lambda folder: shutil.rmtree(folder / "images"), images_of(), FileNotFoundError, "images"),
    "images: no validation": (
        lambda folder: shutil.rmtree(folder / "images/val"),
        images_of(),
        (ValueError, OSError),
        "val",
    ),
    "images: corrupt": (
        write("images/train/cat/2.png", b"\x89PNG no"),
        images_of(verify=True),
        ValueError,
        "2.png",
    ),
    "images: an empty class": (
        lambda folder: (folder / "images/train/cat/1.png").unlink(),
        images_of(),
        (ValueError, OSError),
        "cat",
    ),
    "images: unknown source": (nothing, lambda folder: load_image_data("imagenet22k"), ValueError, "imagenet22k"),
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
        "finite numbers by name",
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
    "recipe: no file": (remove("configs/demo.yaml"), translation_config, OSError, "demo.yaml"),
    "recipe: no YAML": (
        write("configs/demo.yaml", "a: [\n"),
        translation_config,
        ValueError,
        "is not valid YAML.*see recipes",
    ),
    "recipe: a list": (write("configs/demo.yaml", "- a\n"), translation_config, ValueError, "demo.yaml"),
    "recipe: unknown section": (
        write("configs/demo.yaml", "trainin: {}\n"),
        translation_config,
        ValueError,
        "trainin",
    ),
    "recipe: unknown key": (
        write("configs/demo.yaml", "data: {sources: x}\n"),
        translation_config,
        ValueError,
        "sources",
    ),
    "images recipe: unknown row": (
        nothing,
        configuration("image_recipe", "cifar10/demo.yaml", own_section="figure_2", rows=["mine"]),
        ValueError,
        "mine",
    ),
    "images recipe: unknown method": (
        write("configs/cifar10/demo.yaml", "models: {a: {method: magic}}\n"),
        cifar_config,
        ValueError,
        "magic",
    ),
    "editors recipe: unknown editor": (
        write("configs/compare_editors/demo.yaml", "cells: {sgd: [all]}\n"),
        compare,
        ValueError,
        "sgd",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_is_refused_with_a_reason(name, valid, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damage, call, exception, message = CASES[name]
    folder = tmp_path / "input"
    shutil.copytree(valid, folder)
    damage(folder)
    before = digest(folder)
    with pytest.raises(exception, match=rf"(?s){message}") as raised:
        call(folder)
    assert digest(folder) == before
    assert len(str(raised.value)) > 20  # a sentence, not a value
    assert type(raised.value) not in (UnicodeDecodeError, json.JSONDecodeError)


def test_text_that_unpacks_to_more_than_anybody_has(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "MAX_BYTES", 10_000)
    path = tmp_path / "train.de.gz"
    path.write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(ValueError, match="at most 10,000 bytes of text, but it has more"):
        text_lines.read_lines(path)


COMMANDS = {
    "no command": ([], "usage"),
    "unknown command": (["mend"], "invalid choice"),
    "edit: no model": (["edit", "NOWHERE", "--source", "a", "--target", "b", "-o", "OUT"], "NOWHERE"),
    "edit: no source": (
        ["edit", "MODEL", "--target", "b", "-o", "OUT"],
        "Give one of --source, --image and --requests",
    ),
    "edit: both": (
        ["edit", "MODEL", "--source", "a", "--image", "b.png", "--target", "b", "-o", "OUT"],
        "Give one of --source",
    ),
    "edit: two sources, one target": (
        ["edit", "MODEL", "--source", "a", "--source", "b", "--target", "c", "-o", "OUT"],
        "one --target for each --source, got 1 for 2",
    ),
    "edit: output is there": (["edit", "MODEL", "--source", "a", "--target", "b", "-o", "PATCH"], "is there already"),
    "edit: not a number": (
        ["edit", "MODEL", "--source", "a", "--target", "b", "-o", "OUT", "--learning_rate", "fast"],
        "invalid float value: 'fast'",
    ),
    "edit: encoding": (
        ["edit", "MODEL", "--source", "ein hund .", "--target", "a dog .", "-o", "OUT", "--encoding", "zip"],
        "'zip'",
    ),
    "edit: empty source": (["edit", "MODEL", "--source", " ", "--target", "b", "-o", "OUT"], "is empty"),
    "edit: no such layer": (
        ["edit", "MODEL", "--source", "ein", "--target", "a dog", "-o", "OUT", "--layers", "chain9"],
        "chain9",
    ),
    "apply: no such patch": (["apply", "MODEL", "NOWHERE", "-o", "OUT"], "NOWHERE"),
    "apply: a model as a patch": (["apply", "MODEL", "MODEL", "-o", "OUT"], "patch.json is missing"),
    "revert: not applied": (["revert", "MODEL", "PATCH", "-o", "OUT"], "no patch is applied"),
    "diff: no data": (["diff", "MODEL", "PATCH"], "--data"),
    "diff: no such data": (["diff", "MODEL", "PATCH", "--data", "NOWHERE.tsv"], "NOWHERE.tsv"),
    "list: nothing": (["list", "NOWHERE"], "NOWHERE"),
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_command_exits_with_2_and_a_reason(name, valid, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    words, message = COMMANDS[name]
    places = {"MODEL": str(valid / "model"), "PATCH": str(valid / "patch"), "OUT": str(tmp_path / "out")}
    before = digest(valid)
    try:
        code = main([places.get(word, word) for word in words])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert code == 2, printed.out
    assert message in printed.err and "Traceback" not in printed.err
    assert digest(valid) == before and not (tmp_path / "out").exists()
