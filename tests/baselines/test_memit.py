from __future__ import annotations

import re

import pytest
import torch
from causal_models import causal_model
from facts_to_edit import DOWN, ESSENCE, PROMPTS, TARGETS, TEXTS, all_facts, change_of, fact, states

from editable_hf import ContinuationConstraint, JointConstraint, edit, edited
from editable_hf.baselines import ValueSearch, key_covariances, memit
from editable_hf.baselines.memit import MEMIT_SEARCH, block_of, least_squares_update
from editable_hf.baselines.value_search import SubjectRows, search_values, subjects_of
from editable_hf.core.functional import FunctionalModel

NAMES = sorted(DOWN)
ENDS = [2, 3, 1]
STEPS = 4


def model_of(name):
    """Of three layers: what follows the last edited one must look back at the subject."""
    return causal_model(name, **{"n_layer" if name in ("gpt2", "bloom") else "num_hidden_layers": 3})


def layers_of(name):
    return [DOWN[name], DOWN[name].replace(".0.", ".1.")]


def block(layer):
    return re.match(r".*?\.\d+", layer)[0]


def keys_at(model, layer, ends=ENDS, prefixes=((),)):
    module = layer.removesuffix(".weight")
    return torch.stack(
        [
            sum(states(model, module, [0, *prefix, *ids[1:]])[0][end + len(prefix)] for prefix in prefixes)
            / len(prefixes)
            for ids, end in zip(PROMPTS, ends, strict=True)
        ]
    )


def hidden_at(model, layer, ends=ENDS):
    return torch.stack([states(model, block(layer), ids)[1][end] for ids, end in zip(PROMPTS, ends, strict=True)])


def shifts(model, constraint, layer, **options):
    """z less the hidden state, by the search that the test of ROME checks."""
    subjects = subjects_of(constraint, options.get("ends"), options.get("essences"))
    rows = SubjectRows.of(subjects, options.get("prefixes", ()), 0)
    params = {layer: model.get_parameter(layer).detach()}
    functional = FunctionalModel(model, list(params))
    search = options.get("search", MEMIT_SEARCH)
    return search_values(functional, params, rows, model.get_submodule(block(layer)), search, STEPS)


def least_squares(residuals, keys, covariance, weight):
    """Eq. 14 by a dense solve."""
    ridge = covariance.ridge * covariance.moment.diagonal().mean() * torch.eye(len(covariance.moment))
    return torch.linalg.solve(weight * (covariance.moment + ridge) + keys.T @ keys, keys.T @ residuals).T


@pytest.mark.parametrize("name", NAMES)
def test_one_edit_of_one_layer_is_the_least_squares_solution(name):
    model, layer = causal_model(name).double(), DOWN[name]
    covariances = key_covariances(model, TEXTS, layer, progress=None)
    options = {"prefixes": ([11, 12], [14]), "essences": [ESSENCE]}
    editor = memit(covariances, subject_ends=[2], covariance_weight=3.0, **options)
    result = edit(model, fact(0), editor, layer, max_steps=STEPS)
    wanted = shifts(model, fact(0), layer, ends=[2], **options)
    keys = keys_at(model, layer, [2, 0, 0], ((), *options["prefixes"]))[:1]
    expected = least_squares(wanted, keys, covariances[layer], 3.0)
    assert torch.allclose(change_of(result, model, layer), expected, atol=1e-9) and expected.abs().max() > 1e-3
    assert result.num_steps == 1 and len(result.history) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [2, 16])
def test_facts_are_spread_over_layers(name, batch_size):
    model, layers = model_of(name).double(), layers_of(name)
    covariances = key_covariances(model, TEXTS, layers, progress=None)
    editor = memit(covariances, subject_ends=ENDS, covariance_weight=0.1, batch_size=batch_size)
    result = edit(model, all_facts(), editor, layers, max_steps=STEPS)
    wanted = hidden_at(model, layers[1]) + shifts(model, all_facts(), layers[1], ends=ENDS)
    half = (wanted - hidden_at(model, layers[1])) / 2
    first = least_squares(half, keys_at(model, layers[0]), covariances[layers[0]], 0.1)
    assert torch.allclose(change_of(result, model, layers[0]), first, atol=1e-9)
    with edited(model, {layers[0]: result.params[layers[0]]}):  # the second layer sees what the first has done
        rest = wanted - hidden_at(model, layers[1])
        second = least_squares(rest, keys_at(model, layers[1]), covariances[layers[1]], 0.1)
        assert torch.allclose(change_of(result, model, layers[1]), second, atol=1e-9)
    assert (rest - half).abs().max() > 1e-3


def test_facts_of_a_batch_do_not_touch_each_other():
    """Nor where the search for one of them is over before the others'."""
    model, layer, found = causal_model("llama").double(), DOWN["llama"], []
    for search in (MEMIT_SEARCH, MEMIT_SEARCH._replace(stop_loss=2.8)):
        together = shifts(model, all_facts(), layer, search=search)
        alone = torch.cat([shifts(model, fact(index), layer, search=search) for index in range(3)])
        assert torch.allclose(together, alone, atol=1e-7) and together.norm(dim=1).min() > 0.1
        found.append(together)
    assert sorted((found[0] - found[1]).abs().amax(1).gt(1e-3).tolist()) == [False, True, True]


def test_block_of_a_weight():
    model = causal_model("llama")
    assert block_of(model, DOWN["llama"]) is model.model.layers[0]
    with pytest.raises(ValueError, match="lm_head.weight is in no list of layers of LlamaForCausalLM, but MEMIT asks"):
        block_of(model, "lm_head.weight")


def test_update_is_the_minimum():
    generator = torch.Generator().manual_seed(0)
    model, layer = causal_model("llama").double(), DOWN["llama"]
    covariance = key_covariances(model, TEXTS, layer, ridge=1e-9, progress=None)[layer]
    residuals, keys = (torch.randn(3, width, generator=generator).double() for width in (16, 32))

    def cost(update):
        return (keys @ update.T - residuals).square().sum() + 0.5 * torch.trace(update @ covariance.moment @ update.T)

    found = least_squares_update(residuals, keys, covariance, 0.5)
    for _ in range(20):
        other = torch.randn(found.shape, generator=generator).double()
        assert cost(found + 1e-3 * other) > cost(found) < cost(found - 1e-3 * other)


def test_many_facts_are_said():
    """Of one token each: in a network without training, a single vector says no more."""
    model, layers = model_of("llama"), layers_of("llama")
    facts = [
        ContinuationConstraint.from_ids(prompt, target[:1], [[33], [36]], pad_token_id=1)
        for prompt, target in zip(PROMPTS, TARGETS, strict=True)
    ]
    covariances = key_covariances(model, TEXTS, layers, progress=None)
    search = ValueSearch(weight_decay=0.0)
    editor = memit(covariances, covariance_weight=1e-3, search=search)
    result = edit(model, JointConstraint(facts), editor, layers, max_steps=30)
    assert result.success and result.history[0] > 1
    mild = edit(model, JointConstraint(facts), memit(covariances, search=search), layers, max_steps=30)
    for layer in layers:  # text weighs more
        assert change_of(mild, model, layer).norm() < 0.1 * change_of(result, model, layer).norm()
    assert edit(model, all_facts(), editor, layers, max_steps=0).num_steps == 0
    with edited(model, result):
        assert edit(model, JointConstraint(facts[::-1]), editor, layers).num_steps == 0
