from __future__ import annotations

import copy

import pytest
import torch
from causal_models import causal_model
from facts_to_edit import DOWN, all_facts, fact, target_nll

from editable_hf import ClassConstraint, edit, edited
from editable_hf.baselines import ft_l, loc_ft


def adam(model, name, learning_rate):
    return torch.optim.Adam([model.get_parameter(name)], lr=learning_rate)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("max_change", [1.0, 0.012])
def test_ft_l_is_adam_within_a_box(name, max_change):
    model = causal_model(name).double()
    plain, layer = copy.deepcopy(model), DOWN[name]
    result = edit(model, fact(0), ft_l(learning_rate=5e-3, max_change=max_change), layer, max_steps=4)
    weight, optimizer = plain.get_parameter(layer), adam(plain, layer, 5e-3)
    start = weight.detach().clone()
    for _ in range(4):
        optimizer.zero_grad()
        target_nll(plain, 0).backward()
        optimizer.step()
        with torch.no_grad():
            weight.copy_(weight.clamp(start - max_change, start + max_change))
    assert torch.allclose(result.params[layer], weight, rtol=0, atol=1e-9)
    largest = (result.params[layer] - start).abs().max().item()
    assert largest == pytest.approx(0.012, abs=1e-12) if max_change == 0.012 else 0.012 < largest <= 0.021
    assert result.num_steps == 4 and len(set(result.history)) == 5
    assert torch.equal(model.get_parameter(layer), start)


def test_ft_l_ends_where_the_constraint_holds():
    model, layer = causal_model("llama"), DOWN["llama"]
    result = edit(model, all_facts(), ft_l(learning_rate=1e-2, max_change=1.0), layer, max_steps=200)
    assert result.success and 1 < result.num_steps < 200 and min(result.history[:-1]) > 0 >= result.history[-1]
    assert result.loss.item() == result.history[-1]
    with edited(model, result):
        assert edit(model, all_facts(), ft_l(), layer).num_steps == 0
    # So near to where it was, no weight can do it.
    near = edit(model, all_facts(), ft_l(learning_rate=1e-2, max_change=1e-4), layer, max_steps=20)
    largest = (near.params[layer] - model.get_parameter(layer)).abs().max().item()
    assert not near.success and near.num_steps == 20 and largest == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("batch_size", "stop_loss"), [(2, 0.0), (1, 2.5)])
def test_loc_ft_is_a_plain_training_loop(name, batch_size, stop_loss):
    model = causal_model(name).double()
    plain, layer, epochs = copy.deepcopy(model), DOWN[name], 40 if stop_loss else 3
    editor = loc_ft(learning_rate=1e-2, batch_size=batch_size, stop_loss=stop_loss, seed=3)
    result = edit(model, all_facts(), editor, layer, max_steps=epochs)
    optimizer, generator, skipped, total = adam(plain, layer, 1e-2), torch.Generator().manual_seed(3), [], torch.inf
    while epochs and total >= 3 * stop_loss:
        epochs, total = epochs - 1, 0.0
        order = torch.randperm(3, generator=generator).tolist()
        for batch in (order[start : start + batch_size] for start in range(0, 3, batch_size)):
            loss = sum(target_nll(plain, index) for index in batch) / len(batch)
            total += loss.item() * len(batch)
            skipped.append(loss.item() < stop_loss)
            if not skipped[-1]:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    assert torch.allclose(result.params[layer], plain.get_parameter(layer), rtol=0, atol=1e-7)
    assert list(result.params) == [layer] and len(result.history) == 2
    if stop_loss:  # it was over before the last epoch, and some batches needed no update before that
        assert epochs > 0 and any(skipped[:-3]) and not all(skipped[-3:])
    else:
        assert epochs == 0 and not any(skipped)


def test_loc_ft_learns_all_facts_and_stops():
    model, layer = causal_model("llama"), DOWN["llama"]
    result = edit(model, all_facts(), loc_ft(learning_rate=2e-2, stop_loss=0.7), layer, max_steps=150)
    again = edit(model, all_facts(), loc_ft(learning_rate=2e-2, stop_loss=0.7), layer, max_steps=200)
    assert result.success and torch.equal(result.params[layer], again.params[layer])  # the loss ended it
    with edited(model, result):
        losses = [target_nll(model, index).item() for index in range(3)]
        assert sum(losses) < 3 * 0.7 and edit(model, all_facts(), loc_ft(), layer).num_steps == 0
    assert edit(model, all_facts(), loc_ft(), layer, max_steps=0).num_steps == 0


def test_steps_of_half_precision_are_not_lost():
    model, layer = causal_model("llama").to(torch.bfloat16), DOWN["llama"]
    result = edit(model, fact(0), ft_l(learning_rate=3e-5, max_change=1.0), layer, max_steps=60)
    assert result.params[layer].dtype == torch.bfloat16 and result.num_steps == 60
    assert (result.params[layer] != model.get_parameter(layer)).float().mean() > 0.5  # one step alone changes few


@pytest.mark.parametrize("editor", [ft_l(), loc_ft()])
def test_other_constraints_are_refused(editor):
    wanted = ClassConstraint({"input_ids": torch.tensor([[0, 3]])}, 1)
    with pytest.raises(TypeError, match="Expected a ContinuationConstraint.*got a ClassConstraint"):
        edit(causal_model("llama"), wanted, editor, DOWN["llama"])
