from __future__ import annotations

import copy

import pytest
import torch
from causal_models import causal_model
from facts_to_edit import DOWN, PROMPTS, TARGETS, TEXTS, all_facts, fact, states, target_nll

from editable_hf import ClassConstraint, ContinuationConstraint
from editable_hf.baselines import Grace
from editable_hf.core.editing import constraint_value

NAMES = sorted(DOWN)


def unlikely(model):
    """A token that the model would not say after the first prompt, and the constraint that it says it."""
    order = model(torch.tensor(PROMPTS[:1])).logits[0, -1].argsort().tolist()
    token = order[3]
    alternatives = [[other] for other in order if other != token]
    return token, ContinuationConstraint.from_ids(PROMPTS[0], [token], alternatives, pad_token_id=1)


def said(model, prompts, **options):
    """Greedy continuations of prompts in one batch, padded on the left."""
    length = max(map(len, prompts))
    ids = torch.tensor([[1] * (length - len(ids)) + ids for ids in prompts])
    output = model.generate(
        input_ids=ids, attention_mask=(ids != 1).long(), do_sample=False, max_new_tokens=3, output_logits=True,
        return_dict_in_generate=True, pad_token_id=1, eos_token_id=None, **options,
    )  # fmt: skip
    return output.sequences[:, length:].tolist(), torch.stack(output.logits, 1)


@pytest.mark.parametrize("name", NAMES)
def test_unrelated_prompts_stay_bit_equal(name):
    model, layer = causal_model(name), DOWN[name].replace(".0.", ".1.")
    grace, before = Grace(model, layer, radius=0.05), copy.deepcopy(model.state_dict())
    unrelated = torch.tensor([[3, *text] for text in TEXTS[:20]])
    logits, texts = model(unrelated).logits, said(model, [[3, 4], TEXTS[2][:5]])
    token, constraint = unlikely(model)
    result = grace.edit(constraint)
    assert result.success and result.num_steps == 1 and result.history[0] > 0 and result.params == {}
    alone = said(model, PROMPTS[:1])
    with grace.applied():
        assert torch.equal(model(unrelated).logits, logits)
        again = said(model, [[3, 4], TEXTS[2][:5]])
        assert again[0] == texts[0] and torch.equal(again[1], texts[1])
        # The first token of several prompts at once, padded.
        assert said(model, [PROMPTS[1], PROMPTS[0]])[0][1][0] == token != alone[0][0][0]
        assert constraint_value(model, constraint) <= 0 and grace.edit(constraint).num_steps == 0
    assert torch.equal(said(model, PROMPTS[:1])[1], alone[1])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_value_is_trained_by_plain_steps(name):
    model, layer = causal_model(name).double(), DOWN[name]
    grace, module = Grace(model, layer, radius=1e-6, learning_rate=0.05), layer.removesuffix(".weight")
    grace.edit(fact(0), max_steps=3)
    key, output, _ = states(model, module, PROMPTS[0])
    value = output[-1].clone().requires_grad_()
    optimizer, end = torch.optim.Adam([value], lr=0.05), len(PROMPTS[0]) - 1

    def put(_, args, output):
        rows = output.flatten(0, -2)
        return torch.cat([rows[:end], value.unsqueeze(0), rows[end + 1 :]]).view_as(output)

    with model.get_submodule(module).register_forward_hook(put):
        for _ in range(3):
            optimizer.zero_grad()
            target_nll(model, 0).backward()
            optimizer.step()
        expected = model(torch.tensor([PROMPTS[0] + TARGETS[0]])).logits
    assert torch.allclose(grace.values, value[None], atol=1e-9) and torch.allclose(grace.keys, key[-1:], atol=1e-12)
    assert grace.radii.tolist() == [pytest.approx(1e-6)] and grace.targets == [TARGETS[0]]
    with grace.applied():  # read at once, only the prompt's last token finds the entry
        assert torch.allclose(model(torch.tensor([PROMPTS[0] + TARGETS[0]])).logits, expected, atol=1e-9)


def test_many_facts_are_kept():
    model = causal_model("llama")
    grace = Grace(model, DOWN["llama"], radius=1e-3, learning_rate=0.3)
    result = grace.edit(all_facts())
    values = [constraint_value(model, fact(index)) for index in range(3)]
    with grace.applied():
        for index in range(3):
            assert constraint_value(model, fact(index)) < values[index] or values[index] <= 0
        assert constraint_value(model, all_facts()) == pytest.approx(result.loss.item())
    assert len(grace.targets) == sum(value > 0 for value in values) >= 2


def test_half_precision():
    model = causal_model("llama").to(torch.bfloat16)
    grace = Grace(model, DOWN["llama"].replace(".0.", ".1."), radius=0.05)
    token, constraint = unlikely(model)
    assert grace.edit(constraint).success and grace.values.dtype == grace.keys.dtype == torch.float32
    with grace.applied():
        assert said(model, PROMPTS[:1])[0][0][0] == token


def test_codebook_adds_expands_and_splits():
    """Algorithm 1, with keys on a line."""
    grace = Grace(causal_model("llama"), DOWN["llama"], radius=1.0)

    def entry(place, target):
        key = torch.zeros(32)
        key[0] = place
        return grace._entry(key, torch.full((16,), float(place)), target)

    assert entry(0.0, [5]) == 0 and entry(2.5, [6]) == 1  # too far to meet
    assert grace.radii.tolist() == [1.0, 1.0] and grace.values[:, 0].tolist() == [0.0, 2.5]
    assert entry(-1.5, [5]) == 0 and grace.radii.tolist() == [1.5, 1.0]  # expanded
    assert entry(-0.5, [5]) == 0 and grace.radii.tolist() == [1.5, 1.0]  # within
    assert entry(3.3, [7]) == 2
    assert grace.radii.tolist() == pytest.approx([1.5, 0.4, 0.4])  # split
    assert entry(3.3, [8]) == 2 and grace.targets == [[5], [6], [8]]  # the same prompt again
    inputs = torch.zeros(1, 5, 32)
    inputs[0, :, 0] = torch.tensor([-1.4, 1.6, 2.8, 3.6, 3.8])
    answers = grace._answer(None, lambda inputs: torch.full((1, 5, 16), 9.0), inputs)[0, :, 0]
    assert answers.tolist() == pytest.approx([0.0, 9.0, 2.5, 3.3, 9.0])


def test_what_it_is_not_for():
    model = causal_model("llama")
    with pytest.raises(ValueError, match="GRACE has one layer, got .*gate_proj.*up_proj"):
        Grace(model, "layers.0.mlp")
    with pytest.raises(TypeError, match="Expected a ContinuationConstraint"):
        Grace(model, DOWN["llama"]).edit(ClassConstraint({}, 1))
