"""`l_e` of decoder-only models, against sums of log-probabilities one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from causal_models import causal_model

from editable_hf import ContinuationConstraint, JointConstraint, edit, edited, rmsprop, select_parameters
from editable_hf.core import FunctionalModel, continuations
from editable_hf.core.constraints import WithMargin
from editable_hf.core.continuations import JointContinuations, joined
from editable_hf.core.editing import constraint_value

PROMPT, TARGET, ALTERNATIVES = [5, 6, 7], [10, 11, 2], [[12, 2], [13], [14, 15, 16, 17]]


def constraint(**options):
    return ContinuationConstraint.from_ids(PROMPT, TARGET, ALTERNATIVES, pad_token_id=1, **options)


def log_probability(model, ids):
    total = 0.0
    for position, token in enumerate(ids):
        logits = model(torch.tensor([PROMPT + ids[:position]])).logits[0, -1]
        total += float(logits.log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom"])
def test_value_is_that_of_token_after_token(name):
    model = causal_model(name).double()
    with torch.no_grad():
        expected = max(log_probability(model, ids) for ids in ALTERNATIVES) - log_probability(model, TARGET)
    assert constraint_value(model, constraint()) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "bloom"])
@pytest.mark.parametrize("layers", ["last_decoder_mlp", "last_decoder_layer", "last_block"])
def test_an_edit_succeeds_and_can_be_taken_back(name, layers):
    model = causal_model(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = edit(model, constraint(), rmsprop(1e-2), layers, max_steps=50)
    assert result.success
    with edited(model, result):
        assert constraint_value(model, constraint()) <= 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_edit_is_that_without_replay(name):
    model = causal_model(name).double()
    ours, whole = (
        edit(model, constraint(), rmsprop(1e-2), "last_decoder_mlp", max_steps=3, replay=replay)
        for replay in (True, False)
    )
    for key, value in ours.params.items():
        torch.testing.assert_close(value, whole.params[key], rtol=1e-9, atol=1e-12)


def test_several_wordings_at_once():
    model = causal_model("llama")
    wordings = [
        ContinuationConstraint.from_ids(prompt, TARGET, ALTERNATIVES, pad_token_id=1) for prompt in ([5], [7, 8, 9])
    ]
    result = edit(model, JointConstraint(wordings), rmsprop(1e-2), "last_decoder_mlp", max_steps=60)
    assert result.success
    with edited(model, result):
        assert all(constraint_value(model, each) <= 0 for each in wordings)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
@pytest.mark.parametrize("most_logits", [2**26, 300])
def test_continuations_in_one_batch_have_value_and_gradient_of_one_after_another(name, most_logits, monkeypatch):
    monkeypatch.setattr(continuations, "MOST_LOGITS", most_logits)
    model = causal_model(name).double()
    likely = model(torch.tensor([[8, 9]])).logits[0, -1].argsort().tolist()
    parts = [
        constraint(),
        WithMargin(ContinuationConstraint.from_ids([9], [12, 4, 2], [[13], [5, 6]], pad_token_id=1), 0.5),
        ContinuationConstraint.from_ids([8, 9], likely[-1:], [likely[:1]], pad_token_id=1),  # holds
    ]
    found = []
    for joint in (joined(parts), JointConstraint(parts, "mean")):
        params = {key: value.detach().clone().requires_grad_() for key, value in select_parameters(model, "*").items()}
        functional = FunctionalModel(model, list(params))
        value = joint(functional, params)
        value_again = joint(functional, params)
        assert value_again == value > 0
        found.append((value, *torch.autograd.grad(value, list(params.values()), allow_unused=True)))
    assert isinstance(joined(parts), JointContinuations)
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    assert constraint_value(model, joined(parts[2:] * 2)) == 0
    with torch.no_grad():
        model.lm_head.weight[12] = torch.nan
    assert math.isnan(constraint_value(model, joined(parts)))


def test_names_of_the_last_layer():
    mlp = select_parameters(causal_model("gpt2"), "last_decoder_mlp")
    assert len(mlp) == 4 and all(name.startswith("transformer.h.1.mlp.") for name in mlp)
    layer = select_parameters(causal_model("llama"), "last_decoder_layer")
    assert len(layer) == 9 and all(name.startswith("model.layers.1.") for name in layer)


def test_bad_requests_say_what_is_wrong():
    with pytest.raises(ValueError, match="The edit's prompt is empty"):
        ContinuationConstraint.from_ids([], TARGET, ALTERNATIVES, pad_token_id=1)
    with pytest.raises(ValueError, match="The edit's target is empty"):
        ContinuationConstraint.from_ids(PROMPT, [], ALTERNATIVES, pad_token_id=1)
    with pytest.raises(ValueError, match="No alternative differs from the target \\(1 given\\)"):
        ContinuationConstraint.from_ids(PROMPT, TARGET, [TARGET], pad_token_id=1)
    with pytest.raises(ValueError, match="have 7 tokens, but the model takes at most 6"):
        constraint(max_length=6)
