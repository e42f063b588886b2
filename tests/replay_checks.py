"""What the tests of replays share: a replay against the whole model, outputs and gradients, and a small model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from editable_hf.core.replay import Recording, record


def perturbed(model: nn.Module, names: list[str], seed: int = 0) -> dict[str, Tensor]:
    """Values for the parameters of `names` that differ from the model's."""
    generator = torch.Generator().manual_seed(seed)
    own = dict(model.named_parameters())
    noise = {n: torch.randn(own[n].shape, generator=generator, dtype=own[n].dtype) for n in names}
    return {n: (own[n].detach() + 0.3 * noise[n]).requires_grad_() for n in names}


def names_under(model: nn.Module, prefix: str) -> list[str]:
    names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
    assert names, prefix
    return names


def logits_of(output) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def recorded(model: nn.Module, names: list[str], args=(), kwargs=None, **options) -> Recording:
    with record(model, [model.get_parameter(name) for name in names], **options) as recording:
        model(*args, **(kwargs or {}))
    return recording


def answered_names(recording: Recording) -> list[str]:
    names = {module: name for name, module in recording.model.named_modules()}
    return [names[module] for module in recording.cached]


def gradients(model: nn.Module, params: dict[str, Tensor], output) -> dict[str, Tensor]:
    """Of a scalar of the output, with respect to the edited values and to everything else that the model holds."""
    leaves = {**{n: p for n, p in model.named_parameters() if p.requires_grad}, **params}
    logits = logits_of(output)
    scalar = (logits.sin() * torch.arange(1, logits.numel() + 1).view_as(logits)).sum()
    grads = torch.autograd.grad(scalar, list(leaves.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def assert_exact(recording: Recording, names: list[str], args=(), kwargs=None, grads: bool = True) -> None:
    """Two replays with different values give what the whole model gives, and so do their gradients."""
    model = recording.model
    before = logits_of(model(*args, **(kwargs or {})))
    for seed in range(2):
        params = perturbed(model, names, seed)
        replayed, whole = recording.replay(params), functional_call(model, params, args, kwargs or {})
        assert not torch.allclose(logits_of(whole), before), "the edit must show"
        torch.testing.assert_close(logits_of(replayed), logits_of(whole), rtol=0, atol=1e-12)
        if not grads:
            continue
        expected = gradients(model, params, whole)
        assert any(grad.any() for grad in expected.values())
        for name, grad in gradients(model, params, replayed).items():
            torch.testing.assert_close(grad, expected[name], rtol=1e-12, atol=1e-12, msg=name)


class Chain(nn.Module):
    """`first`, then what a subclass does, then `middle` and `last`."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = (nn.Linear(4, 4) for _ in range(3))
        self.extra = self.build()

    def build(self):
        return nn.Identity()

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.extra(self.first(x)))))


def make(build):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().double().eval()
