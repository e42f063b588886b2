import pytest
import torch

from editable_hf import EditorConfig, make_edit_requests
from editable_hf.evaluation.verified_edit import decode
from editable_hf.patches import applied_patches, apply_patches
from editable_hf.patches.sequence import patch_one_after_another


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
    steps = patch_one_after_another(trained_marian, tokenizer, requests, config, progress=None)
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
    (step,) = patch_one_after_another(trained_marian, tokenizer, requests[:1], config, progress=None)
    assert step.patch is None and not step.success and not step.verified and step.broken == []


def test_model_is_restored_after_an_error(trained_marian, tokenizer, requests):
    state = {name: value.clone() for name, value in trained_marian.state_dict().items()}
    config = EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60)
    with pytest.raises(KeyError):
        patch_one_after_another(trained_marian, tokenizer, [requests[0], {"id": 1}], config, progress=None)
    assert all(torch.equal(value, state[name]) for name, value in trained_marian.state_dict().items())
