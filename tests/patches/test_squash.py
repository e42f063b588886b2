"""Several patches as one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from causal_models import causal_model

from editable_hf import EditorConfig, rmsprop
from editable_hf.core.editing import constraint_value, edit
from editable_hf.data.requests import request_constraint
from editable_hf.patches import Patch, apply_patches, revert_patches
from editable_hf.patches.making import REQUEST_KEYS
from editable_hf.patches.squash import squash_patches
from editable_hf.review.terms import terms_of
from editable_hf.terms.glossary import Term


def same(model, state):
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def stacked(model, make_patch, seeds):
    patches = []
    for seed in seeds:
        patches.append(make_patch(model, layers="stages.1" if seed else "stages.0", seed=seed))
        apply_patches(model, patches[-1])
    after = state_of(model)
    revert_patches(model, len(patches))
    return patches, after


def test_one_patch_does_what_three_did(tiny_resnet, make_patch, tmp_path):
    before = state_of(tiny_resnet)
    patches, after = stacked(tiny_resnet, make_patch, (0, 1, 2))
    assert same(tiny_resnet, before)
    one = squash_patches(tiny_resnet, patches)
    assert same(tiny_resnet, before)
    one.save_pretrained(tmp_path / "one")
    apply_patches(tiny_resnet, str(tmp_path / "one"))
    assert same(tiny_resnet, after)
    revert_patches(tiny_resnet)
    assert same(tiny_resnet, before)
    assert one.request == [patch.request for patch in patches] and one.success and one.l_e_after is None
    assert one.num_steps == sum(patch.num_steps for patch in patches) and one.parent is None
    assert set(one.tensors) == {name for patch in patches for name in patch.tensors}


def test_terms_of_a_glossary_are_still_reviewed(tiny_resnet, make_patch):
    patches, _ = stacked(tiny_resnet, make_patch, (0, 1, 2))
    words = [Term(("hund",), ("dog",), ("hound",)), Term(("katze",), ("cat", "cats"))]
    for number, word in enumerate(words):
        states = [{**asdict(word), "held_out": 3}]
        patches[number] = replace(patches[number], metrics={"terms": json.loads(json.dumps(states))})
    assert terms_of(squash_patches(tiny_resnet, patches).metrics) == words


def test_success_is_that_of_all_together():
    """The second edit gives the first's prompt another answer; only the last answer can hold."""
    model = causal_model("llama")
    rows = [{"source": "a", "target": str(token), "input_ids": [5, 6, 7], "labels": [token]} for token in (8, 9)]
    rows[0]["alternatives"], rows[1]["alternatives"] = [[9], [10]], [[8], [10]]
    config, patches = EditorConfig("rmsprop", {"learning_rate": 1e-2, "beta": 0.5}), []
    for row in rows:
        result = edit(model, request_constraint(row, model), rmsprop(1e-2), "last_decoder_mlp", 30)
        request = [{key: {**row, "margin": 0.0}[key] for key in REQUEST_KEYS}]
        patches.append(Patch.from_edit(model, result, request=request, editor=config, layers="last_decoder_mlp"))
        assert patches[-1].success
        apply_patches(model, patches[-1])
    revert_patches(model, 2)
    one = squash_patches(model, patches)
    assert not one.success and one.l_e_after > 0
    assert json.loads(one.to_json())["request"] == [*patches[0].request, *patches[1].request]
    apply_patches(model, one)
    values = [constraint_value(model, request_constraint(row, model)) for row in rows]
    assert one.l_e_after == pytest.approx(sum(max(0.0, value) for value in values) / 2)


def test_one_patch_alone_is_refused(tiny_resnet, make_patch):
    with pytest.raises(ValueError, match="two patches or more to make one of, got 1"):
        squash_patches(tiny_resnet, [make_patch(tiny_resnet, layers="stages.1")])


def test_patches_that_do_not_fit_leave_the_model(tiny_resnet, make_patch):
    (first, second), _ = stacked(tiny_resnet, make_patch, (1, 2))
    before = state_of(tiny_resnet)
    with pytest.raises(ValueError, match="was made on top of patch"):
        squash_patches(tiny_resnet, [second, first])
    assert same(tiny_resnet, before)
