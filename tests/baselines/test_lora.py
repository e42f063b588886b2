from __future__ import annotations

import copy

import pytest
import torch
from causal_models import causal_model
from facts_to_edit import DOWN, all_facts, fact, target_nll
from torch import nn

from editable_hf import edit, edited
from editable_hf.baselines import lora


class Adapted(nn.Module):
    """A linear layer beside which `scale * B A x` runs."""

    def __init__(self, layer, down, rows, scale):
        super().__init__()
        self.layer, self.scale = layer, scale
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(rows, len(down), dtype=down.dtype))

    def forward(self, inputs):
        return self.layer(inputs) + self.scale * inputs @ self.down.T @ self.up.T


@pytest.mark.parametrize("name", sorted(DOWN))
def test_is_an_adapter_beside_the_layer(name):
    """Merged, it says what the model says with the adapter trained as one would."""
    model, layer = causal_model(name).double(), DOWN[name]
    result = edit(model, fact(0), lora(rank=3, alpha=6.0, learning_rate=1e-2, seed=4), layer, max_steps=5)
    plain, inside = copy.deepcopy(model), max(model.get_parameter(layer).shape)
    start = torch.empty(3, inside).uniform_(-(inside**-0.5), inside**-0.5, generator=torch.Generator().manual_seed(4))
    parent, _, child = layer.removesuffix(".weight").rpartition(".")
    adapter = Adapted(plain.get_submodule(parent).get_submodule(child), start.double(), 16, 2.0)
    setattr(plain.get_submodule(parent), child, adapter)
    optimizer = torch.optim.Adam([adapter.down, adapter.up], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        target_nll(plain, 0).backward()
        optimizer.step()
    ids = torch.tensor([[0, 5, 9, 12, 13]])
    before = model(ids).logits
    with edited(model, result):
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-8)
    assert (plain(ids).logits - before).abs().max() > 1e-3
    change = result.params[layer] - model.get_parameter(layer).detach()
    assert torch.linalg.matrix_rank(change, rtol=1e-8) == 3
    assert result.num_steps == 5 and len(result.history) == 6


def test_ends_where_the_constraint_holds():
    model, layers = causal_model("llama"), ["*.down_proj.weight", "*.0.mlp.up_proj.weight"]
    result = edit(model, all_facts(), lora(rank=2), layers, max_steps=200)
    assert len(result.params) == 3 and result.success and 1 < result.num_steps < 200
    assert min(result.history[:-1]) > 0 >= result.history[-1]
    for name, value in result.params.items():
        assert torch.linalg.matrix_rank(value - model.get_parameter(name).detach(), rtol=1e-4) == 2
    with edited(model, result):
        assert edit(model, all_facts(), lora(), layers).num_steps == 0
    with pytest.raises(ValueError, match="input_layernorm.weight is not the weight of a linear layer"):
        edit(model, all_facts(), lora(), "layers.0")
