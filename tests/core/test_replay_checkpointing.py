"""Grad modes and gradient checkpointing: no answer without the graph that is needed, and right gradients."""

import copy

import pytest
import torch
from replay_checks import Chain, answered_names, assert_exact, make, names_under, perturbed, recorded
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from editable_hf.core.functional import FunctionalModel
from editable_hf.core.losses import token_locality_loss
from editable_hf.training.locality import LocalityBatch

LABELS = torch.tensor([[11, 12, 13, 2], [14, 15, 2, -100]])
BATCH = {
    "input_ids": torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 1, 1]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    "decoder_input_ids": torch.tensor([[1, 11, 12, 13], [1, 14, 15, 1]]),
    "use_cache": False,
}


@pytest.fixture
def x():
    return torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def whole_gradients(model, params, x):
    leaves = [*model.parameters(), *params.values()]
    scalar = functional_call(model, params, (x,)).square().sum()
    return torch.autograd.grad(scalar, leaves, materialize_grads=True)


def test_recording_without_graph_does_not_answer_where_gradient_is_needed(x):
    model = make(Chain)
    params = perturbed(model, ["last.weight"])
    functional_model = FunctionalModel(model, ["last.weight"], create_graph=True)
    for _ in range(2):
        with torch.no_grad():
            scored = functional_model(params, x=x)
        assert not scored.requires_grad
        leaves = [*model.parameters(), *params.values()]
        grads = torch.autograd.grad(
            functional_model(params, x=x).square().sum(), leaves, materialize_grads=True, retain_graph=True
        )
        for grad, expected in zip(grads, whole_gradients(model, params, x), strict=True):
            torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)
        assert grads[0].any()  # of `first.weight`, behind the answers


def test_only_the_edited_parameters_have_a_graph_without_create_graph(x):
    model = make(Chain)
    params = perturbed(model, ["last.weight"])
    functional_model = FunctionalModel(model, ["last.weight"])
    for _ in range(2):
        output = functional_model(params, x=x)
        assert output.requires_grad
        grads = torch.autograd.grad(output.sum(), list(model.parameters()), allow_unused=True)
        assert grads == (None,) * len(grads)


class Checkpointed(Chain):
    """`first` to `middle` are checkpointed in train mode."""

    reentrant = False

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        hidden = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.last(torch.tanh(hidden))

    def block(self, x):
        return self.middle(self.extra(self.first(x)))


class Reentrant(Checkpointed):
    reentrant = True


class WithinModule(Checkpointed):
    """A module whose own forward checkpoints its inner ones."""

    def build(self):
        return Reentrant()

    def forward(self, x):
        return self.last(torch.tanh(self.middle(self.extra(self.first(x)))))


CASES = [(build, part) for build in (Checkpointed, Reentrant, WithinModule) for part in ("last.", "middle.")]


@pytest.mark.parametrize(("build", "part"), [*CASES, (WithinModule, "extra.last."), (WithinModule, "extra.middle.")])
def test_checkpointing_in_the_recorded_forward(build, part, x):
    model, x = make(build).train(), x.requires_grad_()  # reentrant checkpoints need an input with graph
    names = names_under(model, part)
    recording = recorded(model, names, (x,), mixed_modes=True)
    params = perturbed(model, names)
    leaves = [*model.parameters(), *params.values(), x]
    grads = []
    for run in (recording.replay, lambda params: functional_call(model, params, (x,))):
        model.eval()  # nothing is checkpointed now, and without dropout the numbers are the same
        run(params).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
        for leaf in leaves:
            leaf.grad = None
    assert sum(grad is not None and bool(grad.any()) for grad in grads[1]) >= 5
    for grad, expected in zip(*grads, strict=True):
        assert (grad is None) == (expected is None)
        if grad is not None:
            torch.testing.assert_close(grad, expected, rtol=0, atol=1e-12)


def test_modules_within_a_reentrant_checkpoint_do_not_answer(x):
    x = x.requires_grad_()
    assert answered_names(recorded(make(Reentrant).train(), ["last.weight"], (x,))) == []
    recording = recorded(make(Checkpointed).train(), ["last.weight"], (x,))
    assert answered_names(recording) == ["first", "extra", "middle"]
    recording = recorded(make(WithinModule).train(), ["last.weight"], (x,))
    assert answered_names(recording) == ["first", "extra", "middle"]


def locality_step(model, params, **options):
    """Base loss and locality as a training step computes them, by one backward; gradients of everything."""
    own = {name: model.get_parameter(name) for name in params}
    batch = LocalityBatch(model, own, BATCH, lambda a, b: token_locality_loss(a, b, LABELS), **options)
    with batch.recorded():
        logits = model(**BATCH).logits
    # A graph from the own parameters to the edited ones, as an unrolled edit has it.
    edits = [{name: own[name] * factor + value for name, value in params.items()} for factor in (0.7, 0.9)]
    total = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten()) + batch.compare(edits)
    total.backward()
    return total.item(), {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("layer", ["model.decoder.layers.1.", "model.decoder.layers.0.", "model.encoder.layers.1."])
def test_checkpointing_of_hugging_face_in_a_training_step(marian, use_reentrant, layer):
    marian = without_dropout(marian).train()
    params = {name: value.detach() for name, value in perturbed(marian, names_under(marian, layer)).items()}
    total, grads = locality_step(copy.deepcopy(marian), params, reuse_base_forward=False, replay=False)
    marian.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    marian.enable_input_require_grads()
    ours, our_grads = locality_step(marian, params)
    assert ours == pytest.approx(total, abs=1e-12)
    assert our_grads.keys() == grads.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=0, atol=1e-12, msg=name)
    assert marian.training and all(module.training for module in marian.modules())


@pytest.mark.parametrize("layer", ["model.decoder.layers.1.", "lm_head"])
def test_training_step_in_train_mode_reuses_exactly_the_prefix(marian, layer):
    model = without_dropout(marian).train()
    names = names_under(model, layer) if layer != "lm_head" else ["model.shared.weight"]
    params = {name: value.detach() for name, value in perturbed(model, names).items()}
    steps = [
        locality_step(copy.deepcopy(model), params, **options)
        for options in ({}, {"reuse_base_forward": False}, {"replay": False})
    ]
    for total, grads in steps[:2]:
        assert total == pytest.approx(steps[2][0], abs=1e-12)
        for name, grad in steps[2][1].items():
            torch.testing.assert_close(grads[name], grad, rtol=0, atol=1e-12, msg=name)


def test_train_mode_alone_can_be_replayed(x):
    model = make(Chain).train()
    assert_exact(recorded(model, ["last.weight"], (x,)), ["last.weight"], (x,))
