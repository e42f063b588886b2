import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import yaml
from patches.patch_checks import LAYER, all_bits, made_up_result, same_bits

from editable_hf import ClassConstraint, EditorConfig, LearnableEditor, edit, edited
from editable_hf.patches import Patch, applied_patches, apply_patches, revert_patches

pytestmark = pytest.mark.compat


def patch_of(model, result, **options):
    own = {"request": "made up", "editor": EditorConfig(), "layers": LAYER, **options}
    return Patch.from_edit(model, result, **own)


@pytest.mark.parametrize("encoding", ["xor", "bf16"])
def test_saved_and_loaded_patch_is_the_same(tiny_marian, make_patch, tmp_path, encoding):
    patch = make_patch(tiny_marian, encoding=encoding, metrics={"drawdown": 0.5}, verified=True)
    patch.save_pretrained(tmp_path / "patch")
    assert sorted(path.name for path in (tmp_path / "patch").iterdir()) == [
        "README.md",
        "patch.json",
        "patch.safetensors",
    ]
    assert Patch.from_pretrained(tmp_path / "patch") == patch
    patch.save_pretrained(tmp_path / "patch")  # the same patch may be saved again
    assert Patch.from_pretrained(str(tmp_path / "patch")).fingerprint == patch.fingerprint


def test_patch_of_a_real_edit_gives_the_edited_model(tiny_resnet, tmp_path):
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    target = int(tiny_resnet(pixels).logits.argmin())
    editor = LearnableEditor("rmsprop", learning_rate=0.02)
    constraint = ClassConstraint({"pixel_values": pixels}, torch.tensor([target]))
    result = edit(tiny_resnet, constraint, editor.build(), "resnet.encoder.stages.1", max_steps=20)
    assert result.success and result.num_steps > 0
    request = {"image": "row 3", "target": target}
    patch = patch_of(tiny_resnet, result, request=request, editor=editor, layers="resnet.encoder.stages.1")
    patch.save_pretrained(tmp_path / "patch")

    with edited(tiny_resnet, result):
        expected = all_bits(tiny_resnet)
    before = all_bits(tiny_resnet)
    apply_patches(tiny_resnet, [tmp_path / "patch"])
    assert same_bits(all_bits(tiny_resnet), expected)
    assert tiny_resnet(pixels).logits.argmax() == target
    revert_patches(tiny_resnet)
    assert same_bits(all_bits(tiny_resnet), before)

    content = json.loads((tmp_path / "patch/patch.json").read_text())
    assert content["num_steps"] == result.num_steps and content["success"] is True and content["verified"] is None
    assert content["l_e_before"] == result.history[0] > 0 >= content["l_e_after"] == result.history[-1]
    assert content["request"] == request and content["layers"] == ["resnet.encoder.stages.1"]
    assert content["editor"] == {"name": "rmsprop", "hyperparameters": editor.values()}
    assert {"editable_hf", "torch", "transformers"} <= set(content["versions"])
    assert content["payload"]["bytes"] == (tmp_path / "patch/patch.safetensors").stat().st_size
    assert content["parent"] is None and content["base_model"] is None and content["rounding"] is None


def test_only_tensors_that_change_are_touched(tiny_marian):
    result = made_up_result(tiny_marian, "*")
    own = dict(tiny_marian.named_parameters())
    kept = {name: own[name].detach().clone() for name in result.params if not name.endswith("fc1.bias")}
    patch = patch_of(tiny_marian, result._replace(params={**result.params, **kept}))
    assert list(patch.tensors) == [name for name in result.params if name.endswith("fc1.bias")]


def test_bf16_states_what_it_loses(tiny_marian, make_patch):
    exact, rounded = make_patch(tiny_marian), make_patch(tiny_marian, encoding="bf16")
    result = made_up_result(tiny_marian, LAYER)
    old = {name: p.detach().clone() for name, p in tiny_marian.named_parameters()}
    apply_patches(tiny_marian, rounded)
    own = dict(tiny_marian.named_parameters())
    error = torch.cat([(own[name] - value).double().flatten() for name, value in result.params.items()])
    move = torch.cat([(old[name].double() - value.double()).flatten() for name, value in result.params.items()])
    assert rounded.rounding["max_abs_error"] == pytest.approx(error.abs().max().item(), rel=1e-4)
    assert rounded.rounding["relative_error"] == pytest.approx((error.norm() / move.norm()).item(), rel=1e-4)
    assert 0 < rounded.rounding["relative_error"] < 2**-8
    assert rounded.edited_fingerprint != exact.edited_fingerprint
    assert rounded.base_fingerprint == exact.base_fingerprint


def test_card_has_front_matter_and_says_what_counts(tiny_marian, make_patch, tmp_path):
    patch = make_patch(tiny_marian, base_model="me/translator", metrics={"BLEU drawdown": 0.25}, encoding="bf16")
    patch.save_pretrained(tmp_path)
    _, header, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": "me/translator",
        "library_name": "editable_hf",
        "tags": ["editable", "editable-patch"],
    }
    for part in ("me/translator", "ein test .", "BLEU drawdown", patch.fingerprint, "lost by rounding", "2, -0.5"):
        assert part in text
    assert "from transformers import MarianMTModel" in text
    assert 'MarianMTModel.from_pretrained("me/translator", dtype="float32")' in text
    assert "$" not in text


def test_no_text_breaks_out_of_the_card(tiny_marian, tmp_path):
    request = "```\n# not a title\n---\n$fingerprint ${x}"
    patch = patch_of(tiny_marian, made_up_result(tiny_marian, LAYER), request=request, metrics={"a": "`````"})
    patch.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "````json\n" + json.dumps(request) + "\n````\n" in text and "\n``````json\n" in text
    assert "base_model" not in text.split("---\n")[1]


@pytest.mark.parametrize("name", ["/data/runs/mine", "../mine", "a/b/c"])
def test_paths_of_this_machine_are_not_written_down(tiny_marian, make_patch, name):
    with pytest.raises(ValueError, match="hub id.*means nothing on another machine"):
        make_patch(tiny_marian, base_model=name)
    tiny_marian.config.name_or_path = name
    assert make_patch(tiny_marian).base_model is None


def test_base_model_is_what_the_model_was_loaded_from(tiny_marian, make_patch, tmp_path, monkeypatch):
    tiny_marian.config.name_or_path = "me/translator"
    assert make_patch(tiny_marian).base_model == "me/translator"
    (tmp_path / "me/translator").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert make_patch(tiny_marian).base_model is None


def test_parent_is_the_last_patch_that_is_applied(tiny_marian, make_patch):
    first = make_patch(tiny_marian)
    apply_patches(tiny_marian, first)
    second = make_patch(tiny_marian, seed=1)
    assert first.parent is None and second.parent == first.fingerprint
    assert make_patch(tiny_marian, seed=1, parent=first) == second


def test_a_fingerprint_names_the_tensors_the_encoding_and_the_parent_only(tiny_marian, make_patch):
    patches = [
        make_patch(tiny_marian),
        make_patch(tiny_marian, seed=1),
        make_patch(tiny_marian, encoding="bf16"),
        make_patch(tiny_marian, parent="0" * 64),
    ]
    assert len({patch.fingerprint for patch in patches}) == 4
    assert make_patch(tiny_marian, metrics={"more": 1}).fingerprint == patches[0].fingerprint


def test_an_edit_that_changes_nothing_is_refused(tiny_marian):
    result = made_up_result(tiny_marian, LAYER)
    with (
        edited(tiny_marian, result),
        pytest.raises(ValueError, match="0 steps.*applied already: make the patch first"),
    ):
        patch_of(tiny_marian, result)


def test_an_edit_of_another_model_is_refused(tiny_marian, tiny_resnet):
    result = made_up_result(tiny_marian, LAYER)
    with pytest.raises(ValueError, match="which ResNetForImageClassification does not have"):
        patch_of(tiny_resnet, result)
    with pytest.raises(ValueError, match="bfloat16.*but the edit holds float32"):
        patch_of(tiny_marian.bfloat16(), result)


def test_what_cannot_be_written_down_is_refused(tiny_marian):
    result = made_up_result(tiny_marian, LAYER)
    with pytest.raises(TypeError, match="`request`.*describe an image by its file name"):
        patch_of(tiny_marian, result, request={"pixel_values": torch.zeros(2)})
    with pytest.raises(TypeError, match="`metrics` of strings, finite numbers"):
        patch_of(tiny_marian, result, metrics={"bleu": float("nan")})
    with pytest.raises(TypeError, match="EditorConfig or a LearnableEditor"):
        patch_of(tiny_marian, result, editor=LearnableEditor().build())
    with pytest.raises(ValueError, match="Unknown `encoding` 'int8'. Choose one of: xor, bf16"):
        patch_of(tiny_marian, result, encoding="int8")
    history = [float("inf"), float("nan")]
    assert patch_of(tiny_marian, result._replace(history=history)).l_e_after is None


def test_nothing_on_disk_is_overwritten(tiny_marian, make_patch, tmp_path):
    make_patch(tiny_marian).save_pretrained(tmp_path / "patch")
    files = {path: path.read_bytes() for path in (tmp_path / "patch").iterdir()}
    other = make_patch(tiny_marian, seed=1)
    with pytest.raises(ValueError, match="holds patch .*; save to another folder"):
        other.save_pretrained(tmp_path / "patch")
    assert {path: path.read_bytes() for path in (tmp_path / "patch").iterdir()} == files
    tiny_marian.save_pretrained(tmp_path / "model")
    (tmp_path / "model/README.md").write_text("card of the model")
    with pytest.raises(ValueError, match="README.md of something else"):
        other.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model/README.md").read_text() == "card of the model"


@pytest.mark.parametrize("name", ["patch.safetensors", "patch.json", "README.md"])
def test_an_interrupted_save_leaves_a_patch_or_none(tiny_marian, make_patch, tmp_path, monkeypatch, name):
    patch = make_patch(tiny_marian)
    write_bytes = Path.write_bytes

    def full_disk(path, content):
        if path.name == f"{name}.tmp":
            write_bytes(path, content[: len(content) // 2])
            raise OSError("No space left on device")
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        patch.save_pretrained(tmp_path)
    monkeypatch.undo()
    if name == "README.md":
        assert Patch.from_pretrained(tmp_path) == patch
    else:
        with pytest.raises(ValueError, match="patch.json is missing"):
            Patch.from_pretrained(tmp_path)
    patch.save_pretrained(tmp_path)
    assert Patch.from_pretrained(tmp_path) == patch


def corrupt_payload(folder):
    path = folder / "patch.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def rewrite(**changes):
    def change(folder):
        path = folder / "patch.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (corrupt_payload, "patch.safetensors .* is damaged: expected sha256 .*found"),
        (rewrite(parent="0" * 64), "patch.json .* is damaged: expected sha256"),
        (rewrite(tensors={}), "expected `tensors` to be `dtype`, `shape`"),
        (rewrite(tensors={"a": {"dtype": "float32"}}), "expected `tensors` to be `dtype`, `shape`"),
        (rewrite(format=2), "has format 2, and this version .* reads 1; upgrade"),
        (rewrite(encoding="int8"), "Unknown `encoding` 'int8'"),
        (lambda folder: (folder / "patch.json").write_text("{"), "is not valid JSON .*save the patch again"),
        (lambda folder: (folder / "patch.json").write_text("[]"), "must hold a JSON object, got list"),
        (lambda folder: (folder / "patch.json").write_bytes(b'{"\xff"}'), "is not valid JSON .*0xff"),
        (lambda folder: (folder / "patch.json").write_text("[" * 100_000), "is not valid JSON .*nested too deeply"),
        (rewrite(num_steps="many"), "expected `num_steps` to be 0 or a higher whole number, got 'many'"),
        (rewrite(editor={"name": 5}), "expected `editor` to be an object with `name` and `hyperparameters`"),
        (lambda folder: (folder / "patch.json").write_text("{}"), r"is damaged \(KeyError"),
        (lambda folder: (folder / "patch.safetensors").unlink(), "patch.safetensors is missing; give the folder"),
    ],
)
def test_a_damaged_patch_is_refused(tiny_marian, make_patch, tmp_path, damage, message):
    make_patch(tiny_marian).save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        apply_patches(tiny_marian, tmp_path)
    assert applied_patches(tiny_marian) == []


def test_keys_from_the_future_are_named_and_ignored(tiny_marian, make_patch, tmp_path, caplog):
    patch = make_patch(tiny_marian)
    patch.save_pretrained(tmp_path)
    rewrite(reviewer="ana")(tmp_path)
    assert Patch.from_pretrained(tmp_path) == patch
    assert "reviewer" in caplog.text


def test_payload_that_is_not_what_the_json_says(tiny_marian, make_patch):
    patch = make_patch(tiny_marian)
    before = all_bits(tiny_marian)
    streams = safetensors.numpy.load(patch.payload)
    first = next(iter(streams))
    fewer = {name: plane for name, plane in streams.items() if name != first}
    shifted = copy.deepcopy(streams)
    shifted[first] = streams[first] ^ 1 if streams[first].size > 500 else streams[first][::-1].copy()
    for payload in (safetensors.numpy.save(fewer), safetensors.numpy.save(shifted), b"no safetensors"):
        with pytest.raises(ValueError, match="download or save the patch again|make or download it again"):
            apply_patches(tiny_marian, replace(patch, payload=payload))
        assert same_bits(all_bits(tiny_marian), before)


@pytest.mark.parametrize(
    "forge",
    [
        lambda plane: plane.astype("float32"),
        lambda plane: plane.astype("complex64"),
        lambda plane: plane.astype(bool),
        lambda plane: plane.reshape(1, -1),
        lambda plane: plane[0],
    ],
)
def test_payload_of_other_kinds_of_numbers(tiny_marian, make_patch, forge):
    patch = make_patch(tiny_marian)
    streams = {name: forge(plane) for name, plane in safetensors.numpy.load(patch.payload).items()}
    payload = safetensors.numpy.save({name: np.asarray(plane) for name, plane in streams.items()})
    with pytest.raises(ValueError, match="and not bytes.*save the patch again"):
        apply_patches(tiny_marian, replace(patch, payload=payload))
    assert applied_patches(tiny_marian) == []
