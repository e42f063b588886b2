"""Adam against its textbook form, that of torch, and its ends."""

from __future__ import annotations

import pytest
import reference
import torch

from editable_hf.core import adam, apply_updates


def gradient(seed):
    return {"a": torch.randn(4, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)}


@pytest.mark.parametrize("scale", [1.0, 1e-8])
def test_adam_goes_where_that_of_torch_goes(scale):
    weight = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    theirs, editor = torch.optim.Adam([weight], lr=0.1, betas=(0.3, 0.8), eps=1e-8), adam(0.1, 0.3, 0.8)
    params = {"w": weight.detach().clone()}
    state = editor.init(params)
    for seed in range(5):
        weight.grad = scale * torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        theirs.step()
        updates, state = editor.update({"w": weight.grad}, state)
        params = apply_updates(params, updates)
        torch.testing.assert_close(params["w"], weight.detach(), rtol=0, atol=1e-12)


def test_derivative_of_adam_at_a_gradient_of_zero_is_that_of_its_limit():
    """The first step is -alpha * g / (|g| + eps), whose slope at 0 is -alpha / eps."""
    grad = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    editor = adam(0.5, eps=1e-2)
    updates, _ = editor.update({"w": grad}, editor.init({"w": grad}))
    (slope,) = torch.autograd.grad(updates["w"].sum(), grad)
    assert slope.tolist() == pytest.approx([-50.0, -50.0])


def test_adam_at_beta1_one_uses_the_plain_average():
    gradients = [gradient(seed) for seed in range(6)]
    editor = adam(0.1, beta1=1.0, beta2=0.8)
    state = editor.init(gradients[0])
    for step, grads in enumerate(gradients, start=1):
        updates, state = editor.update(grads, state)
        seen = torch.stack([g["a"] for g in gradients[:step]])
        v = sum((1 - 0.8) * 0.8 ** (step - 1 - i) * seen[i] ** 2 for i in range(step)) / (1 - 0.8**step)
        torch.testing.assert_close(updates["a"], -0.1 * seen.mean(0) / (torch.sqrt(v) + 1e-8), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta2", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("beta1", [0.1, 0.5, 0.9, 0.999999])
def test_adam_equals_the_textbook_form(beta1, beta2):
    gradients = [gradient(seed) for seed in range(10)]
    editor = adam(0.1, beta1, beta2)
    state = editor.init(gradients[0])
    for step, grads in enumerate(gradients, start=1):
        updates, state = editor.update(grads, state)
        expected = reference.adam([g["a"] for g in gradients[:step]], 0.1, beta1, beta2)
        torch.testing.assert_close(updates["a"], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("beta1", [0.05, 1.1, torch.tensor(0.05), torch.tensor(0.05, requires_grad=True)])
def test_adam_refuses_beta1_outside_the_papers_range(beta1):
    with pytest.raises(ValueError, match=r"`beta1` must be in \[0\.1, 1\].*got (0\.05|1\.1)"):
        adam(0.1, beta1=beta1)


@pytest.mark.parametrize("beta1", [0.1, 1.0, torch.tensor(0.1)])
def test_adam_accepts_the_ends_of_the_range(beta1):
    adam(0.1, beta1=beta1)
