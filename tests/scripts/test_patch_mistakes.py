from __future__ import annotations

import json

import pytest
import torch
from patch_mistakes import patch_one_after_another

from editable_hf import EditorConfig, make_edit_requests
from editable_hf.evaluation.verified_edit import decode
from editable_hf.patches import applied_patches, apply_patches


@pytest.mark.slow
def test_mistakes_are_patched(run_script, translator_folder, corpus, tmp_path):
    config, out = EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=40), tmp_path / "out"
    config.save_pretrained(translator_folder)
    options = ["--model", translator_folder, "--data", corpus, "--num_mistakes", "3", "--num_alternatives", "3"]
    done = run_script("scripts/patch_mistakes.py", *options, "--output_dir", out, "--save_patches")
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "patches.json").read_text())
    assert found["num_mistakes"] == 3 and found["num_sentences"] == 30
    assert found["once"]["verified"] <= found["verified"]["verified"] and found["verified"]["satisfied"] == 1
    assert found["sequence"]["mended"] >= 1 / 3 and found["together"]["num_steps"] > 0
    assert len(list(out.glob("*/patch.json"))) == len(found["sequence"]["bytes"])


@pytest.fixture
def requests(trained_marian, tokenizer, sentence_pairs):
    sources, targets = sentence_pairs
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=30)
    return make_edit_requests(
        trained_marian, tokenizer, sources[:4], targets=targets[1:5], num_alternatives=3, progress=None
    ).to_list()


def test_each_patch_is_made_on_top_of_those_before(trained_marian, tokenizer, requests):
    state = {name: value.clone() for name, value in trained_marian.state_dict().items()}
    config = EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60)
    steps = patch_one_after_another(trained_marian, tokenizer, requests, config, 5)
    assert all(torch.equal(value, state[name]) for name, value in trained_marian.state_dict().items())
    assert applied_patches(trained_marian) == []
    patches = [step.patch for step in steps if step.patch is not None]
    assert len(patches) >= 3 and [patch.parent for patch in patches] == [None, *(p.fingerprint for p in patches[:-1])]

    holding = set()
    for index, step in enumerate(steps):
        if step.patch is not None:
            apply_patches(trained_marian, step.patch)
        decoded = [decode(trained_marian, tokenizer, each) for each in requests]
        right = {i for i, ids in enumerate(decoded) if ids == requests[i]["labels"]}
        assert step.verified == (index in right)
        assert step.broken == sorted(holding - right)
        holding = (holding - set(step.broken)) | ({index} & right)


def test_edit_that_fails_leaves_no_patch(trained_marian, tokenizer, requests):
    config = EditorConfig(hyperparameters={"learning_rate": 1e-9, "beta": 0.5}, max_steps=1)
    (step,) = patch_one_after_another(trained_marian, tokenizer, requests[:1], config, 5)
    assert step.patch is None and not step.success and not step.verified and step.broken == []


def test_model_is_restored_after_an_error(trained_marian, tokenizer, requests):
    state = {name: value.clone() for name, value in trained_marian.state_dict().items()}
    config = EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60)
    with pytest.raises(KeyError):
        patch_one_after_another(trained_marian, tokenizer, [requests[0], {"id": 1}], config, 5)
    assert all(torch.equal(value, state[name]) for name, value in trained_marian.state_dict().items())
