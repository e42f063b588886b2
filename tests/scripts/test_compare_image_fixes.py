from __future__ import annotations

import importlib.util
import json
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageClassification

from editable_hf import EditorConfig, edited
from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.editing import edit
from editable_hf.data.image_transforms import EvalTransform, TrainTransform
from editable_hf.data.images import load_image_data
from editable_hf.models import CifarResNetConfig, CifarResNetForImageClassification

SCRIPTS = Path(__file__).parents[2] / "scripts"
COUNTS = {"num_fixes": 4, "num_retrained": 2, "num_validation": 2, "num_images": 40, "num_validation_images": 20}
COUNTS |= {"num_updates": 2, "batch_size": 4, "max_steps": 5}
METHODS = ["edit, editable", "edit, plain", "fine-tune, all", "fine-tune, chain3", "lookup table"]
METHODS += ["train on, 2 updates"]


@pytest.fixture(scope="module")
def script():
    """The script as a module, with few learning rates and small groups."""
    spec = importlib.util.spec_from_file_location("compare_image_fixes", SCRIPTS / "compare_image_fixes.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        spec.loader.exec_module(module)
        module.EDIT_RATES = module.TUNE_RATES = module.RETRAIN_RATES = (1e-3, 1e-2)
        module.LARGEST_GROUP = 2
        module.load_image_data = cache(module.load_image_data)
        yield module


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of two networks that have seen a few digits, so that they get some of the others wrong."""
    folder, data = tmp_path_factory.mktemp("networks"), load_image_data("embedded", max_train_samples=320)
    pixels = EvalTransform(16, data.mean, data.std).pixels(data.splits["train"]["image"])
    labels = torch.tensor(data.splits["train"]["label"])
    with torch.random.fork_rng(devices=[]):
        for seed, name in enumerate(("plain", "editable")):
            torch.manual_seed(seed)
            model = CifarResNetForImageClassification(CifarResNetConfig(depth=8)).train()
            optimizer = torch.optim.Adam(model.parameters(), 3e-3)
            for rows in torch.arange(320).repeat(2).split(32):
                optimizer.zero_grad()
                model(pixel_values=pixels[rows], labels=labels[rows]).loss.backward()
                optimizer.step()
            model.save_pretrained(folder / name)
    EditorConfig(layers=["chain3"]).save_pretrained(folder / "editable")
    return folder


def run(script, networks, output_dir, **options):
    options = {"plain": networks / "plain", "editable": networks / "editable", **COUNTS, **options}
    flags = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare_image_fixes.py", *flags, "--output_dir", str(output_dir)])
        script.main(script.parse_args())
    return {row["name"]: row for row in json.loads((output_dir / "results.json").read_text())["rows"]}


@pytest.fixture(scope="module")
def finished(script, networks, tmp_path_factory):
    """The folder and the rows of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(script, networks, folder)


def records_of(folder, method):
    path = folder / method.replace(", ", "-").replace(" ", "_") / "fixes.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def digits():
    """The test images, normalized, their classes, and augmented versions of each as the script seeds them."""
    data = load_image_data("embedded")
    images, labels = data.splits["test"]["image"], torch.tensor(data.splits["test"]["label"])
    augment = TrainTransform(16, data.mean, data.std, flip=False)

    def versions(index):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(index)
            return augment.pixels([images[index]] * 8)

    return EvalTransform(16, data.mean, data.std).pixels(images), labels, versions


@torch.no_grad()
def predicted(model, pixels):
    return model.eval()(pixel_values=pixels).logits.argmax(-1)


def without_times(row):
    if isinstance(row, list):
        return [without_times(each) for each in row]
    if isinstance(row, dict):
        return {key: without_times(value) for key, value in row.items() if not key.endswith("_seconds")}
    return row


def test_all_methods_correct_the_same_mistakes(finished, networks, digits):
    folder, rows = finished
    pixels, labels, _ = digits
    wrong = predicted(AutoModelForImageClassification.from_pretrained(networks / "plain"), pixels) != labels
    corrected = [record["image_index"] for record in records_of(folder, "lookup table")]
    assert list(rows) == METHODS and len(set(corrected)) == 4
    for name, row in rows.items():
        records = records_of(folder, name)
        assert row["num_edits"] == len(records) == (2 if name.startswith("train on") else 4)
        assert [record["image_index"] for record in records] == corrected[: len(records)]
        assert all(wrong[record["image_index"]] for record in records)
        assert [record["target"] for record in records] == labels[corrected[: len(records)]].tolist()
        assert row["already_right"] == 0 or name == "edit, editable"
        chosen = [each["learning_rate"] for each in row["tried"]]
        assert chosen == ([] if name == "lookup table" else [1e-3, 1e-2]) and row["learning_rate"] in [*chosen, 0]
        # A method with half of the corrections has half of those that its rate is chosen on.
        assert all(each["num_edits"] == (1 if name.startswith("train on") else 2) for each in row["tried"])


def test_columns_against_a_count_over_whole_networks(finished, networks, digits):
    folder, rows = finished
    (pixels, labels, versions), row = digits, rows["edit, editable"]
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    scored = order[: COUNTS["num_images"]]
    model = AutoModelForImageClassification.from_pretrained(networks / "editable")
    before = predicted(model, pixels)
    errors = (before != labels)[scored].double().mean()
    counted = {name: [] for name in ("holds", "augmented", "augmented_before", "drawdown", "outputs_changed")}
    counted["already_right"] = []
    for record in records_of(folder, "edit, editable"):
        index, target = record["image_index"], record["target"]
        assert index not in order[: COUNTS["num_images"] + COUNTS["num_validation_images"]]
        editor = EditorConfig().build_editor(learning_rate=row["learning_rate"])
        constraint = ClassConstraint({"pixel_values": pixels[index : index + 1]}, target)
        result = edit(model, constraint, editor, "chain3", COUNTS["max_steps"])
        counted["already_right"].append(before[index] == target)
        counted["augmented_before"].append((predicted(model, versions(index)) == target).double().mean())
        with edited(model, result):
            after = predicted(model, pixels)
            counted["augmented"].append((predicted(model, versions(index)) == target).double().mean())
        counted["holds"].append(after[index] == target)
        counted["drawdown"].append(((after != labels)[scored].double().mean() - errors).abs())
        counted["outputs_changed"].append((after != before)[scored].double().mean())
    for name, values in counted.items():
        assert row[name] == pytest.approx(torch.stack(values).double().mean().item()), name
    assert row["error_rate"] == pytest.approx(errors.item())
    assert 0 < row["outputs_changed"] < 1 and row["augmented"] > row["augmented_before"]


def test_lookup_table_answers_for_the_very_image_alone(finished, networks, digits):
    folder, rows = finished
    pixels, _, versions = digits
    row, model = rows["lookup table"], AutoModelForImageClassification.from_pretrained(networks / "plain")
    assert (row["holds"], row["drawdown"], row["outputs_changed"]) == (1, 0, 0)
    num_same = 0
    for record in records_of(folder, "lookup table"):
        of_image = versions(record["image_index"])
        same = (of_image == pixels[record["image_index"]]).flatten(1).all(1)
        right = predicted(model, of_image) == record["target"]
        assert record["augmented_before"] == right.double().mean()
        assert record["augmented"] == (right | same).double().mean()
        num_same += int(same.sum())
    assert (row["augmented"] == row["augmented_before"]) == (num_same == 0)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_results(script, networks, finished, tmp_path, monkeypatch):
    calls, damage = [], script.damage
    kill_at = 30  # in the middle of a group of the fourth method's fixes

    def until_killed(*args):
        calls.append(args)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return damage(*args)

    monkeypatch.setattr(script, "damage", until_killed)
    with pytest.raises(KeyboardInterrupt):
        run(script, networks, tmp_path)
    kept = {path: path.read_text() for path in tmp_path.rglob("*.jsonl")}
    num_kept = sum(text.count("\n") for text in kept.values())
    rows = run(script, networks, tmp_path)
    assert without_times(rows) == without_times(finished[1])
    # Whole groups of two are kept, and of the 40 fixes of a run only the others are made again.
    assert num_kept == 28 and len(calls) == kill_at + 40 - num_kept
    for path, text in kept.items():
        assert Path(str(path).replace(".partial", "")).read_text().startswith(text)


def test_rate_is_the_gentlest_one_that_holds(script):
    rows = [(1e-4, 0.8, 0.0), (3e-4, 0.9, 0.02), (1e-3, 1.0, 0.01), (1e-2, 1.0, 0.3)]
    rows = [dict(zip(("learning_rate", "holds", "drawdown"), row, strict=True)) for row in rows]
    assert script.best_rate(rows) == 1e-3
    assert script.best_rate([rows[0], {**rows[1], "holds": 0.7}]) == 1e-4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"editable": "plain"}, "plain has no editor_config.json: give a network that was trained to be edited"),
        ({"plain": "missing"}, "There is no checkpoint folder missing: give one"),
        ({"editable": "missing"}, "There is no checkpoint folder missing: give one"),
        ({"plain": "missing.th"}, "missing.th"),
        ({"data": "./missing"}, "./missing"),
        ({"num_images": 390}, "6 mistakes are to be corrected, but .*plain makes 0 on the 0 test images"),
        ({"num_fixes": 399}, "401 mistakes are to be corrected, but .*plain makes [0-9]+ on the 340 test images"),
    ],
)
def test_what_cannot_be_compared_is_refused(script, networks, tmp_path, options, message):
    if options == {"editable": "plain"}:
        options = {"editable": networks / "plain"}
    with pytest.raises(SystemExit, match=message):
        run(script, networks, tmp_path, **options)


def test_counts_start_at_one(script, networks, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(script, networks, tmp_path, num_fixes=0, num_versions=-1)
    assert "--num_fixes, --num_versions: must be 1 or more" in capsys.readouterr().err
