"""The command, from edit to revert, as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from image_models import build_image_models
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, ViTImageProcessorPil

from editable_hf import EditorConfig
from editable_hf.cli import build_parser, main

pytestmark = pytest.mark.compat


@pytest.fixture
def model_folder(translator_folder):
    config = EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60)
    config.save_pretrained(translator_folder)
    return str(translator_folder)


@pytest.fixture
def data_file(sentence_pairs, tmp_path):
    path = tmp_path / "test.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in zip(*sentence_pairs, strict=True)))
    return str(path)


def run(capsys, *args):
    """Exit code and what was printed, as JSON."""
    code = main([*args, "--json"])
    printed = capsys.readouterr().out
    return code, json.loads(printed) if printed else None


def make_patch(capsys, model_folder, sentence_pairs, output, index=0, *options):
    source, target = sentence_pairs[0][index], sentence_pairs[1][index + 1]  # a wrong one: nobody translates so
    return run(capsys, "edit", model_folder, "--source", source, "--target", target, "-o", str(output), *options)


def test_from_edit_to_revert(capsys, model_folder, sentence_pairs, data_file, tmp_path):
    patch, above = str(tmp_path / "patch"), str(tmp_path / "above")
    code, found = make_patch(capsys, model_folder, sentence_pairs, patch)
    assert code == 0 and found["success"] and found["verified"] and found["outputs"] == [sentence_pairs[1][1]]
    assert found["patch"] == patch and found["num_steps"] > 0 and found["bytes"] > 0

    code, found = run(capsys, "diff", model_folder, patch, "--data", data_file, "--html", str(tmp_path / "page.html"))
    assert code == 0 and found["num_examples"] == 200 and not found["above_max_drawdown"]
    own = next(change for change in found["changes"] if change["index"] == 0)
    assert own["edited"] and own["after"] == sentence_pairs[1][1]
    assert "<html" in (tmp_path / "page.html").read_text()
    limit = str(found["drawdown"] / 2)
    assert found["drawdown"] > 0
    code, found = run(capsys, "diff", model_folder, patch, "--data", data_file, "--max_drawdown", limit)
    assert code == 1 and found["above_max_drawdown"]

    code, _ = make_patch(capsys, model_folder, sentence_pairs, above, 4, "--patches", patch)
    assert code == 0
    code, found = run(capsys, "evaluate", model_folder, patch, above, "--data", data_file)
    assert code == 0 and found["patches"][1]["verified"] and found["review"]["num_examples"] == 200

    patched, restored = str(tmp_path / "patched"), str(tmp_path / "restored")
    assert run(capsys, "apply", model_folder, patch, above, "-o", patched)[0] == 0
    _, found = run(capsys, "list", patched, patch)
    assert len(found["found"][0]["patches"]) == 2 and found["found"][1]["verified"]
    assert found["found"][0]["patches"][0] == found["found"][1]["fingerprint"]
    assert run(capsys, "revert", patched, patch, above, "-o", restored)[0] == 0
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (model_folder, restored))
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)
    assert EditorConfig.from_pretrained(restored) == EditorConfig.from_pretrained(model_folder)


def test_text_output(capsys, model_folder, sentence_pairs, data_file, tmp_path):
    patch = str(tmp_path / "patch")
    source, target = sentence_pairs[0][0], sentence_pairs[1][1]
    assert main(["edit", model_folder, "--source", source, "--target", target, "-o", patch]) == 0
    printed = capsys.readouterr().out
    assert "l_e <= 0 reached in" in printed and f"Patch: {patch} (" in printed and target in printed
    assert main(["diff", model_folder, patch, "--data", data_file, "--markdown", str(tmp_path / "diff.md")]) == 0
    assert "BLEU" in capsys.readouterr().out and "BLEU" in (tmp_path / "diff.md").read_text()
    assert main(["evaluate", model_folder, patch]) == 0
    assert "l_e <= 0 yes, verified yes" in capsys.readouterr().out
    assert main(["list", patch, model_folder]) == 0
    assert "a model with 0 patches" in capsys.readouterr().out


def test_requests_from_a_file(capsys, model_folder, sentence_pairs, tmp_path):
    sources, targets = sentence_pairs
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps({"source": sources[i], "target": targets[i + 1]}) + "\n" for i in (0, 4)))
    code, found = run(capsys, "edit", model_folder, "--requests", str(path), "-o", str(tmp_path / "patch"))
    assert code == 0 and len(found["outputs"]) == 2


def test_edit_that_fails_writes_nothing(capsys, model_folder, sentence_pairs, tmp_path):
    options = ("--learning_rate", "1e-9", "--max_steps", "1", "--layers", "decoder.layers.1.fc2")
    code, found = make_patch(capsys, model_folder, sentence_pairs, tmp_path / "patch", 0, *options)
    assert code == 1 and found["patch"] is None and not found["success"] and not (tmp_path / "patch").exists()


def test_nothing_to_edit(capsys, model_folder, trained_marian, tokenizer, sentence_pairs, tmp_path):
    (ids,) = trained_marian.generate(**tokenizer(sentence_pairs[0][:1], return_tensors="pt"))
    said = tokenizer.decode(ids, skip_special_tokens=True)
    command = ["edit", model_folder, "--source", sentence_pairs[0][0], "--target", said, "-o", str(tmp_path / "p")]
    assert main(command) == 0
    assert "Nothing to edit" in capsys.readouterr().out and not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give one of --source, --image and --requests"),
        (["--source", "a", "--requests", "b"], "Give one of --source, --image and --requests"),
        (["--source", "a"], "Give one --target for each --source, got 0 for 1"),
        (["--image", "a.png", "--target", "1", "--target", "2"], "Give one --target, the class of all images; got 2"),
    ],
)
def test_wrong_edits(capsys, tmp_path, options, message):
    assert main(["edit", "model", "-o", str(tmp_path / "new"), *options]) == 2
    assert message in capsys.readouterr().err


def test_wrong_folders(capsys, model_folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    full = str(tmp_path / "full")
    assert main(["edit", model_folder, "--source", "a", "--target", "b", "-o", full]) == 2
    assert "is there already; give a new folder" in capsys.readouterr().err
    assert main(["apply", model_folder, model_folder, "-o", str(tmp_path / "out")]) == 2
    assert "patch" in capsys.readouterr().err


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--help"])
    assert "editable-hf diff" in capsys.readouterr().out


def test_command_is_installed():
    done = subprocess.run([sys.executable, "-m", "editable_hf.cli", "list", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "usage: editable-hf list" in done.stdout


@pytest.fixture
def image_model(tmp_path):
    from tiny_images import tiny_huggingface_resnet

    model = tiny_huggingface_resnet().float()
    model.config.id2label = dict(
        enumerate(["cat", "dog", "owl", "fox", "bee", "ant", "elk"][: model.config.num_labels])
    )
    model.config.label2id = {name: label for label, name in model.config.id2label.items()}
    folder = tmp_path / "classifier"
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    config = EditorConfig(hyperparameters={"learning_rate": 1e-2, "beta": 0.5}, layers=["chain3"], max_steps=60)
    config.save_pretrained(folder)
    return str(folder)


def test_images(capsys, image_model, tmp_path):
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    images = str(tmp_path / "images")
    one = f"{images}/cat/0.png"
    said = []
    for target in ("cat", "dog"):
        patch = str(tmp_path / target)
        code, found = run(capsys, "edit", image_model, "--image", one, "--target", target, "-o", patch)
        assert code == 0 and found["success"] and found["outputs"] == [target]
        if found["patch"] is not None:
            said.append(patch)
    code, found = run(capsys, "diff", image_model, said[0], "--data", images, "--html", str(tmp_path / "page.html"))
    assert code == 0 and found["kind"] == "image" and found["num_examples"] == 6
    code, found = run(capsys, "evaluate", image_model, said[0])
    assert code == 0 and found["patches"][0]["success"] is None  # the image is not in the patch
    assert main(["edit", image_model, "--image", one, "--target", "cow", "-o", str(tmp_path / "x")]) == 2
    assert "The model has no class 'cow'; give a number below" in capsys.readouterr().err


@pytest.mark.parametrize("plain", ["ViT", "ResNet of two stages", "ResNet"])
def test_classifier_that_was_not_trained_to_be_editable(capsys, plain, image_model, tmp_path):
    """Moves what makes sense for its kind, as the patch says."""
    folder = Path(image_model)
    (folder / "editor_config.json").unlink()
    if plain != "ResNet":
        build_image_models()[plain.split()[0]]().save_pretrained(folder)
        size = {"height": 32, "width": 32}
        ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(folder)
    image, patch = str(tmp_path / "image.png"), str(tmp_path / "patch")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    classes = range(AutoModelForImageClassification.from_pretrained(folder).config.num_labels)
    options = ("--learning_rate", "0.01", "--max_steps", "200", "-o", patch)
    for target in classes:  # the first that it does not say already
        code, found = run(capsys, "edit", image_model, "--image", image, "--target", str(target), *options)
        if found["patch"] is not None:
            break
    assert code == 0 and found["success"]
    layers = json.loads((tmp_path / "patch/patch.json").read_text())["layers"]
    assert layers == ["chain3" if plain == "ResNet" else "last_block"]
