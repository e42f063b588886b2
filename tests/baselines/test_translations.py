"""Fine-tuning and LoRA take translations, too: they minimize what the model itself calls its loss."""

import copy

import pytest
import torch

from editable_hf import JointConstraint, edit, make_edit_requests, request_constraint
from editable_hf.baselines import ft_l, loc_ft, lora, rome
from editable_hf.evaluation.verified_edit import WithMargin

LAYERS = "decoder.layers.1.fc2.weight"


@pytest.fixture
def constraint(trained_marian, tokenizer):
    sources = ["der hund sieht das haus .", "die katze malt nie den zug ."]
    targets = ["the woman sees the house .", "the woman never paints the train ."]
    options = {"targets": targets, "num_alternatives": 2, "progress": None}
    rows = make_edit_requests(trained_marian, tokenizer, sources, **options)
    return JointConstraint([WithMargin(request_constraint(row, trained_marian), 0.1) for row in rows])


@pytest.mark.parametrize("make", [ft_l, loc_ft])
def test_is_adam_on_the_models_own_loss(make, trained_marian, tokenizer, constraint):
    options = {"max_change": 1.0} if make is ft_l else {"stop_loss": 0.0}
    result = edit(trained_marian, constraint, make(learning_rate=1e-3, **options), LAYERS, max_steps=2)
    plain = copy.deepcopy(trained_marian)
    optimizer = torch.optim.Adam([plain.get_parameter(f"model.{LAYERS}")], lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        # The mean over sentences of the mean over their tokens.
        losses = [
            plain(**part.constraint.inputs, labels=part.constraint.labels[:1]).loss for part in constraint.constraints
        ]
        torch.stack(losses).mean().backward()
        optimizer.step()
    (changed,) = result.params.values()
    torch.testing.assert_close(changed, plain.get_parameter(f"model.{LAYERS}").detach(), rtol=0, atol=1e-9)


def test_lora_makes_translations_hold(trained_marian, constraint):
    result = edit(trained_marian, constraint, lora(rank=2, learning_rate=1e-2), LAYERS, max_steps=100)
    assert result.success and result.num_steps > 0


def test_editors_of_subjects_refuse_translations(trained_marian, constraint):
    with pytest.raises(TypeError, match="what follows a prompt"):
        edit(trained_marian, constraint, rome(None, subject_ends=[0], essences=[]), LAYERS)
