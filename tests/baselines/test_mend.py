from __future__ import annotations

import copy

import pytest
import torch
from causal_models import causal_model
from facts_to_edit import DOWN, PROMPTS, TARGETS, TEXTS, all_facts, change_of, fact, target_nll
from torch import nn

from editable_hf import ContinuationConstraint, edit, edited
from editable_hf.baselines import Mend, MendExample, train_mend
from editable_hf.baselines.mend import mend_loss

NAMES = sorted(DOWN)


def layers_of(name):
    return [DOWN[name], DOWN[name].replace(".0.", ".1.")]


def mend_of(model, layers):
    """A network that is not the identity, as after training, with some statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mend = Mend(model, layers, rank=6, learning_rate=0.05).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in mend.networks.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        for statistics in mend.statistics.values():
            for _ in range(2):
                statistics.update(torch.randn(4, len(statistics.mean), generator=generator, dtype=torch.float64))
    return mend


def factors(model, layer, index):
    found, module = [], model.get_submodule(layer.removesuffix(".weight"))

    def keep(_, args, output):
        output.retain_grad()
        found.extend((args[0], output))

    hook = module.register_forward_hook(keep)
    target_nll(model, index).backward()
    hook.remove()
    return found[0].detach().flatten(0, -2), found[1].grad.flatten(0, -2)


@pytest.mark.parametrize("name", NAMES)
def test_update_is_that_of_the_paper(name):
    """Eq. 3 and Algorithm 1, token after token."""
    model, layers = causal_model(name).double(), layers_of(name)
    mend = mend_of(model, layers)
    result = edit(model, all_facts(), mend.build(), layers)
    ((key, blocks),) = mend.networks.items()
    statistics = mend.statistics[key]
    for index, layer in enumerate(layers):
        expected = torch.zeros(16, int(key.split("x")[1])).double()
        for number, prompt in enumerate(PROMPTS):
            inputs, grads = factors(model, layer, number)
            pairs = [(u, d) for u, d in zip(inputs, grads, strict=True) if d.any()]
            # After the last edited layer, tokens of a prompt before its end have no gradient, nor has a target's end.
            assert len(pairs) == len(TARGETS[number]) + (len(prompt) - 1) * (index == 0)
            for u, d in pairs:
                z = (torch.cat([u, d]) - statistics.mean) / (statistics.squares / 7).sqrt()
                for block in blocks:
                    inside = block.up @ (block.down @ z) + block.bias
                    z = z + torch.relu(block.scale[index] * inside + block.offset[index])
                expected -= 0.05 * torch.outer(z[len(u) :], z[: len(u)]).detach()
        assert torch.allclose(change_of(result, model, layer), expected, atol=1e-7) and expected.abs().max() > 0.01
    assert result.num_steps == 1 and len(result.history) == 2


def test_without_training_it_is_the_gradient_of_normalized_factors():
    model, (layer, _) = causal_model("llama").double(), layers_of("llama")
    mend = Mend(model, layer, learning_rate=0.1).double()
    statistics = mend.statistics["16x32"]
    statistics.count, statistics.squares = torch.tensor(2), torch.ones(48, dtype=torch.float64)  # std 1
    result = edit(model, fact(0), mend.build(), layer)
    target_nll(model, 0).backward()
    assert torch.allclose(change_of(result, model, layer), -0.1 * model.get_parameter(layer).grad, atol=1e-9)


def example(index, text=0):
    """A fact, and the same after a prompt that is longer by one token."""
    longer = [0, 15, *PROMPTS[index][1:]]
    rephrased = ContinuationConstraint.from_ids(longer, TARGETS[index], [[33]], pad_token_id=1)
    return MendExample(fact(index), rephrased, TEXTS[text])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_loss_and_its_derivative(name):
    model, layers = causal_model(name).double(), layers_of(name)
    mend, before = mend_of(model, layers), copy.deepcopy(model.state_dict())
    saved = copy.deepcopy(mend.state_dict())
    mend_loss(mend, model, example(0), 0.3).backward()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def loss():
        """What an edit with the statistics that hold the example does, measured on the edited model."""
        with edited(model, edit(model, fact(0), mend.build(), layers)), torch.no_grad():
            said, after = (model(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in (longer, TEXTS[0]))
        nll = -sum(said[len(longer) - 3 + i, token] for i, token in enumerate(TARGETS[0])) / 2
        text = model(torch.tensor([TEXTS[0]])).logits[0].log_softmax(-1)
        return (0.3 * nll + (text.exp() * (text - after)).sum(1).mean()).item()

    longer = [0, 15, *PROMPTS[0][1:], *TARGETS[0]]
    parameters = dict(mend.named_parameters())
    for key in ("alphas", f"networks.{mend.keys[0]}.0.up", f"networks.{mend.keys[0]}.1.offset"):
        number = int(parameters[key].grad.abs().argmax())
        place = parameters[key].view(-1)[number : number + 1]
        values = []
        for change in (1e-3, -2e-3):  # Llama has its norms in float32
            with torch.no_grad():
                place += change
            values.append(loss())
        with torch.no_grad():
            place += 1e-3
        derivative = (values[0] - values[1]) / 2e-3
        assert parameters[key].grad.view(-1)[number].item() == pytest.approx(derivative, rel=1e-2) != 0
    mend.load_state_dict(saved)
    assert mend_loss(mend, model, example(0), 0.3).item() == pytest.approx(loss(), abs=1e-6)


class Drawn(list):
    """Remembers which of its items were looked up."""

    def __getitem__(self, index):
        self.drawn.append(index)
        return super().__getitem__(index)


def test_training_lowers_the_loss_and_edits_work():
    model, layers = causal_model("llama"), layers_of("llama")
    before = copy.deepcopy(model.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mend = Mend(model, layers, rank=24, learning_rate=1e-3)
    examples = Drawn(example(index, index) for index in range(3))
    examples.drawn = drawn = []
    options = {"batch_size": 3, "edit_weight": 1.0, "learning_rate": 1e-3, "alpha_learning_rate": 1e-3}
    history = train_mend(mend, model, examples, 25, progress=None, **options)
    assert sorted(drawn) == [0] * 25 + [1] * 25 + [2] * 25
    assert len(history) == 25 and sum(history[-3:]) < 0.8 * sum(history[:3])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    nll = target_nll(model, 0)
    with edited(model, edit(model, fact(0), mend.build(), layers)):
        assert target_nll(model, 0) < nll - 0.5
    other = Mend(model, layers, rank=24)
    other.load_state_dict(mend.state_dict())
    results = [edit(model, fact(0), each.build(), layers).params for each in (mend, other)]
    assert all(torch.equal(results[0][name], results[1][name]) for name in layers)
    with pytest.raises(ValueError, match="This MEND edits .*0.mlp.down_proj.weight.*, got .*up_proj.weight"):
        edit(model, fact(0), mend.build(), "*.0.mlp.up_proj.weight")
    with pytest.raises(TypeError, match="`editor` must be an `Editor`"):
        assert isinstance(mend, nn.Module) and edit(model, fact(0), mend, layers)
