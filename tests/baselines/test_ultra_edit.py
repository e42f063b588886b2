from __future__ import annotations

import pytest
import torch
from causal_models import causal_model
from facts_to_edit import DOWN, PROMPTS, TARGETS, all_facts, change_of, fact, target_nll

from editable_hf import ContinuationConstraint, JointConstraint, edit, edited
from editable_hf.baselines import UltraEdit

NAMES = sorted(DOWN)


def features(model, layer, indices):
    """Inputs and gradients of outputs at the tokens that predict the targets, by hooks, fact after fact."""
    keys, grads, module = [], [], model.get_submodule(layer.removesuffix(".weight"))
    for index in indices:
        found = []

        def keep(_, args, output, found=found):
            output.retain_grad()
            found.extend((args[0], output))

        hook = module.register_forward_hook(keep)
        target_nll(model, index).backward()
        hook.remove()
        at = slice(len(PROMPTS[index]) - 1, len(PROMPTS[index]) + len(TARGETS[index]) - 1)
        keys.append(found[0].flatten(0, -2)[at].detach())
        grads.append(found[1].grad.flatten(0, -2)[at])
    return torch.cat(keys), torch.cat(grads)


def update(hidden, grads, seen, eta):
    """The paper's formula with a dense solve; `seen` are the features of all edits so far."""
    normalized = (torch.cat([hidden, grads], 1) - seen.mean(0)) / (seen.std(0) + torch.finfo(seen.dtype).eps)
    inputs, directions = normalized[:, : hidden.shape[1]], normalized[:, hidden.shape[1] :]
    values = -eta * (inputs**2).sum(1, keepdim=True) * directions
    return torch.linalg.solve(hidden.T @ hidden + torch.eye(hidden.shape[1]), hidden.T @ values).T


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [2, 16])
def test_update_is_that_of_the_paper(name, batch_size):
    model, layers = causal_model(name).double(), [DOWN[name], DOWN[name].replace(".0.", ".1.")]
    result = edit(model, all_facts(), UltraEdit(learning_rate=1e-3, batch_size=batch_size), layers)
    for layer in layers:
        hidden, grads = features(model, layer, range(3))
        expected = update(hidden, grads, torch.cat([hidden, grads], 1), 1e-3)
        assert torch.allclose(change_of(result, model, layer), expected, atol=1e-8) and expected.abs().max() > 1e-4
    assert result.num_steps == 1 and len(result.history) == 2


def test_normalization_remembers_earlier_edits():
    model, layer = causal_model("llama").double(), DOWN["llama"]
    editor = UltraEdit(learning_rate=1e-3)
    first = edit(model, JointConstraint([fact(0), fact(2)]), editor, layer)
    seen = torch.cat(features(model, layer, (0, 2)), 1)
    with edited(model, first):
        hidden, grads = features(model, layer, (0,))
        second = edit(model, fact(0), editor, layer)
        expected = update(hidden, grads, torch.cat([seen, torch.cat([hidden, grads], 1)]), 1e-3)
        assert torch.allclose(change_of(second, model, layer), expected, atol=1e-8)
        assert not torch.allclose(expected, update(hidden, grads, torch.cat([hidden, grads], 1), 1e-3), atol=1e-3)
    assert editor.statistics[layer].count == 2 + 3 + 2


def test_facts_become_likelier():
    model, layers = causal_model("llama"), "*.up_proj.weight"
    editor = UltraEdit(learning_rate=3e-3)
    before = sum(target_nll(model, index).item() for index in range(3))
    result = edit(model, all_facts(), editor, layers)
    with edited(model, result):
        assert sum(target_nll(model, index).item() for index in range(3)) < before - 0.5
    assert edit(model, all_facts(), editor, layers, max_steps=0).num_steps == 0
    with pytest.raises(ValueError, match="is not the weight of a linear layer"):
        edit(model, fact(0), editor, "layers.0")


def test_a_single_token_alone_changes_nothing():
    model, layer = causal_model("llama"), DOWN["llama"]
    best = model(torch.tensor(PROMPTS[1:2])).logits[0, -1].argmax().item()
    constraint = ContinuationConstraint.from_ids(PROMPTS[1], TARGETS[1], [[best]], pad_token_id=1)
    editor = UltraEdit(learning_rate=1e-2)
    result = edit(model, constraint, editor, layer)
    assert torch.equal(result.params[layer], model.get_parameter(layer)) and result.num_steps == 1
    edit(model, all_facts(), editor, layer)
    result = edit(model, constraint, editor, layer)
    assert not torch.equal(result.params[layer], model.get_parameter(layer)) and result.num_steps == 1
