from __future__ import annotations

import copy

import pytest
import torch
from causal_models import causal_model
from facts_to_edit import DOWN, ESSENCE, PROMPTS, TARGETS, TEXTS, all_facts, change_of, fact, states, target_nll

from editable_hf import edit, edited, rmsprop
from editable_hf.baselines import KeyCovariance, ValueSearch, key_covariances, rome

NAMES = sorted(DOWN)


def covariance_of(model, layer, **options):
    return key_covariances(model, TEXTS, layer, progress=None, **options)[layer]


@pytest.mark.parametrize("name", NAMES)
def test_covariance_is_the_mean_of_outer_products(name):
    model, layer = causal_model(name).double(), DOWN[name]
    texts = [TEXTS[0], TEXTS[1][:5], TEXTS[2][:9]]
    keys = torch.cat([states(model, layer.removesuffix(".weight"), ids)[0] for ids in texts])
    found = key_covariances(model.train(), texts, layer, batch_size=2, progress=None)
    assert list(found) == [layer] and model.training
    assert torch.allclose(found[layer].moment, keys.T @ keys / 26, atol=1e-12)
    whole = covariance_of(model, layer, ridge=0.1)
    ridge = 0.1 * whole.moment.diagonal().mean() * torch.eye(len(whole.moment))
    assert torch.allclose(whole.solve(keys), torch.linalg.solve(whole.moment + ridge, keys.T).T, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefixes", [(), ([11, 12, 13], [14])], ids=["alone", "prefixes"])
def test_key_is_sent_to_the_value_exactly(name, prefixes):
    """Eq. 2. The value is one more run of the same search, written out: Adam on a vector added by a hook."""
    model, layer = causal_model(name).double(), DOWN[name]
    module, end, steps = layer.removesuffix(".weight"), 2, 5
    covariance = covariance_of(model, layer)
    editor = rome(covariance, subject_ends=[end], prefixes=prefixes, essences=[ESSENCE])
    result = edit(model, fact(0), editor, layer, max_steps=steps)
    key, value, _ = states(model, module, PROMPTS[0])
    wanted = value[end] + searched_by_hand(model, module, end, prefixes, steps)
    with edited(model, result):
        new_key, new_value, _ = states(model, module, PROMPTS[0])
    assert torch.equal(key[end], new_key[end]) and torch.allclose(new_value[end], wanted, atol=1e-8)
    assert (wanted - value[end]).norm() > 0.5

    change = change_of(result, model, layer)
    assert torch.linalg.matrix_rank(change, rtol=1e-9) == 1
    keys = [states(model, module, [0, *prefix, *PROMPTS[0][1:]])[0][end + len(prefix)] for prefix in ((), *prefixes)]
    direction = covariance.solve(sum(keys).unsqueeze(0) / len(keys))[0]
    assert torch.allclose(change, torch.outer(change @ key[end], direction) / (key[end] @ direction), atol=1e-8)
    assert result.num_steps == 1 and len(result.history) == 2


def searched_by_hand(model, module, end, prefixes, steps):
    search = ValueSearch()
    model = copy.deepcopy(model)
    _, value, _ = states(model, module, PROMPTS[0])
    length = value[end].norm()
    neutral = states(model, module, ESSENCE[0])[2][-1].log_softmax(-1).detach()
    vector = torch.zeros_like(value[end], requires_grad=True)
    optimizer = torch.optim.Adam([vector], lr=search.learning_rate)

    def log_probs(ids, at):
        def add(_, args, output):
            rows = output.view(len(ids), -1)
            return torch.cat([rows[:at], rows[at : at + 1] + vector, rows[at + 1 :]]).view_as(output)

        hook = model.get_submodule(module).register_forward_hook(add)
        logits = model(torch.tensor([ids])).logits[0]
        hook.remove()
        return logits.log_softmax(-1)

    for _ in range(steps):
        loss = 0
        for prefix in ((), *prefixes):
            ids = [0, *prefix, *PROMPTS[0][1:]]
            said = log_probs(ids + TARGETS[0], end + len(prefix))[len(ids) - 1 :]
            loss -= sum(said[i, token] for i, token in enumerate(TARGETS[0])) / len(TARGETS[0]) / (1 + len(prefixes))
        now = log_probs(*ESSENCE)[-1]
        loss += search.kl_weight * (now.exp() * (now - neutral)).sum()
        loss += search.weight_decay * vector.norm() / length**2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            vector *= min(1, search.max_norm * length / vector.norm())
    return vector.detach()


def test_no_other_update_that_does_the_same_changes_text_less():
    model, layer = causal_model("llama").double(), DOWN["llama"]
    covariance = covariance_of(model, layer, ridge=1e-9)
    result = edit(model, fact(0), rome(covariance), layer, max_steps=3)
    change = result.params[layer] - model.get_parameter(layer).detach()
    key = states(model, layer.removesuffix(".weight"), PROMPTS[0])[0][-1]

    def cost(update):
        return torch.trace(update @ covariance.moment @ update.T)

    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        other = torch.randn(change.shape, generator=generator).double()
        other -= torch.outer(other @ key, key) / (key @ key)
        for size in (1e-3, 0.1):
            assert cost(change + size * other) >= cost(change) * (1 - 1e-9)


def test_length_is_bounded_and_a_search_ends():
    model, layer = causal_model("llama").double(), DOWN["llama"]
    covariance, module = covariance_of(model, layer), layer.removesuffix(".weight")
    value = states(model, module, PROMPTS[0])[1][-1]
    for search, most in ((ValueSearch(max_norm=0.3), 0.3), (ValueSearch(stop_loss=100.0), 0.0)):
        result = edit(model, fact(0), rome(covariance, search=search), layer, max_steps=9)
        with edited(model, result):
            change = states(model, module, PROMPTS[0])[1][-1] - value
        assert change.norm() / value.norm() == pytest.approx(most, rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_facts_are_said(name):
    model, layer = causal_model(name), DOWN[name]
    search = ValueSearch(weight_decay=0.0, max_norm=20.0)
    editor = rome(covariance_of(model, layer), search=search)
    result = edit(model, fact(0), editor, layer, max_steps=40)
    assert result.success and result.params[layer].dtype == torch.float32
    before = target_nll(model, 0)
    with edited(model, result):
        assert target_nll(model, 0) < before - 1
    several = edit(model, all_facts(), editor, layer, max_steps=40)
    assert torch.linalg.matrix_rank(several.params[layer] - model.get_parameter(layer), rtol=1e-4) == 3


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ("layers.0.mlp", {}, "the weight of one linear layer, got .*up_proj"),
        ("layers.0.input_layernorm", {}, "input_layernorm.weight is not the weight of a linear layer"),
        (DOWN["llama"], {"subject_ends": [1, 2]}, "has 1 facts, but there are 2 `subject_ends` and 1 `essences`"),
        (DOWN["llama"], {"subject_ends": [4]}, "at token 4 of a prompt of 4"),
    ],
)
def test_what_does_not_fit(layers, options, message):
    model, covariance = causal_model("llama"), KeyCovariance(torch.eye(32, dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        edit(model, fact(0), rome(covariance, **options), layers)
    assert edit(model, fact(0), rome(covariance), DOWN["llama"], max_steps=0).num_steps == 0
    known = edit(model, fact(0), rmsprop(1e-2), DOWN["llama"], max_steps=200)
    with edited(model, known):
        assert edit(model, fact(0), rome(covariance), DOWN["llama"]).num_steps == 0
