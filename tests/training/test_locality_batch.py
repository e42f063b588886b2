"""One `LocalityBatch`: when the base forward can be reused, and that both sides start from the same activations."""

from functools import partial

import pytest
import torch
from causal_models import causal_model
from tiny_models import bart_config
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BartForConditionalGeneration
from transformers.utils import logging

from editable_hf.core import constraints
from editable_hf.core.losses import token_locality_loss
from editable_hf.core.selection import select_parameters
from editable_hf.training.locality import LocalityBatch

LABELS = torch.tensor([[6, 7, 8, 2], [9, 10, 2, -100]])
INPUTS = {
    "input_ids": torch.tensor([[5, 6, 7, 2], [8, 9, 2, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "decoder_input_ids": torch.tensor([[2, 6, 7, 8], [2, 9, 10, 1]]),
    "use_cache": False,
}


def batch_of(model, names, **options):
    own = dict(model.named_parameters())
    return LocalityBatch(
        model,
        {name: own[name] for name in names},
        INPUTS,
        lambda reference, edited: token_locality_loss(reference, edited, LABELS),
        **options,
    )


def layer_names(model, layer):
    return [name for name, _ in model.named_parameters() if name.startswith(f"model.decoder.layers.{layer}.")]


@pytest.fixture
def bart():
    """Four decoder layers, each dropped half of the time, and no dropout."""
    dropout = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "decoder_layerdrop": 0.5}
    config = bart_config(decoder_layers=4, **dropout)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BartForConditionalGeneration(config).double().train()


def base_and_locality(model, names, seed, **options):
    """Locality of a made-up edit, the gradients of it and the base loss together, and the base logits."""
    own, generator = dict(model.named_parameters()), torch.Generator().manual_seed(1)
    noise = {name: torch.randn(own[name].shape, generator=generator, dtype=torch.float64) for name in names}
    batch = batch_of(model, names, **options)
    torch.manual_seed(seed)
    with batch.recorded():
        logits = model(**INPUTS).logits
    locality = batch.compare([{name: own[name] + 0.2 * noise[name] for name in names}])
    base = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten())
    leaves = [param for param in model.parameters() if param.requires_grad]
    return locality, torch.autograd.grad(base + locality, leaves, materialize_grads=True), logits.detach()


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_layerdrop_falls_back_with_one_warning(bart, layer, caplog):
    """Whether a layer before the edited one is dropped, the edited one itself, one after it, or none."""
    logging.warning_once.cache_clear()
    names, patterns = layer_names(bart, layer), set()
    with caplog.at_level("WARNING"):
        for seed in range(12):
            locality, grads, logits = base_and_locality(bart, names, seed)
            expected, expected_grads, base_logits = base_and_locality(bart, names, seed, reuse_base_forward=False)
            assert torch.equal(logits, base_logits) and locality > 0
            patterns.add(tuple(logits[0, 0].tolist()))
            for value, wanted in zip((locality, *grads), (expected, *expected_grads), strict=True):
                torch.testing.assert_close(value, wanted, rtol=0, atol=1e-10)
    assert len(patterns) > 5
    assert bart.training and not [module for module in bart.modules() if "forward" in vars(module)]
    warnings = [message for message in caplog.messages if "The locality term needs a second forward" in message]
    # Before layer 0 there is nothing that could have been dropped.
    assert len(warnings) == (0 if layer == 0 else 1)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("replay", [True, False])
def test_locality_of_an_edit_that_moves_nothing_is_exactly_zero(tiny_marian, train, reuse, replay):
    # With dropout in the base forward: both sides must start from the same activations.
    names, own = layer_names(tiny_marian, 1), dict(tiny_marian.named_parameters())
    batch = batch_of(tiny_marian.train(train), names, reuse_base_forward=reuse, replay=replay)
    with batch.recorded():
        tiny_marian(**INPUTS)
    still = {name: own[name] * 1.0 for name in names}
    value = batch.compare([still, still])
    grads = torch.autograd.grad(value, list(still.values()), materialize_grads=True)
    assert value.item() == 0 and not any(grad.any() for grad in grads)
    assert batch.compare([{name: param + 0.1 for name, param in still.items()}]) > 0
    assert tiny_marian.training is train


@pytest.mark.parametrize("name", ["marian", "llama"])
def test_edits_compared_at_once(tiny_marian, name, monkeypatch):
    """But for rounding; Llama normalizes in float32."""
    if name == "marian":
        model, inputs = tiny_marian.double().train(), INPUTS
    else:
        model = causal_model(name).double().train()
        inputs = {key: INPUTS[key] for key in ("input_ids", "attention_mask", "use_cache")}
    own, generator = dict(model.named_parameters()), torch.Generator().manual_seed(1)
    names = list(select_parameters(model, "last_decoder_layer"))
    batch = LocalityBatch(model, {key: own[key] for key in names}, inputs, partial(token_locality_loss, labels=LABELS))
    with batch.recorded():
        model(**inputs)
    noise = lambda key: torch.randn(own[key].shape, generator=generator, dtype=torch.float64)  # noqa: E731
    edits = [{key: own[key] + 0.2 * noise(key) for key in names} for _ in range(3)]
    found = []
    for devices in ({"cuda"}, {"cpu"}):
        monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", devices)
        with sdpa_kernel(SDPBackend.MATH):  # `vmap` warns that it has no rule for the kernel of a CPU
            value = batch.compare(edits)
        leaves = [param for param in model.parameters() if param.requires_grad]
        found.append((value, *torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)))
    assert found[0][0] > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10 if name == "marian" else 1e-6)


def test_dropout_of_the_base_forward_reaches_both_sides(tiny_marian):
    model = tiny_marian.double().train()
    names, own, values = layer_names(model, 1), dict(model.named_parameters()), []
    edited = {name: (own[name] + 0.1).detach() for name in names}
    for seed in (0, 0, 1):
        batch = batch_of(model, names)
        torch.manual_seed(seed)
        with batch.recorded():
            model(**INPUTS)
        values.append(batch.compare([edited]).item())
    assert values[0] == values[1] != values[2]
    with torch.no_grad():
        logits = [functional_call(model.eval(), params, (), INPUTS).logits for params in ({}, edited)]
    assert values[0] != pytest.approx(token_locality_loss(*logits, LABELS).item(), rel=1e-6)
