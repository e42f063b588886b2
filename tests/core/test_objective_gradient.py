"""The gradient of the whole objective of section 4.4, against finite differences and against the oracle."""

import functools
from types import SimpleNamespace

import pytest
import reference
import torch
from torch.func import functional_call
from torch.nn import functional as F

from editable_hf.core import (
    FunctionalModel,
    LearnableEditor,
    SequenceConstraint,
    edit,
    edit_loss,
    objective,
    token_locality_loss,
)

EDIT_COEF, LOCALITY_COEF, NUM_STEPS = 1.5, 100.0, 3
START = 1
STEP = 3e-5  # of the differences; the error is below 1e-6 from 1e-4 down to 3e-6


@pytest.fixture
def setting(marian, request_ids):
    """The model, a learnable RMSProp, a batch of the task and a request the edit does not fulfil in three steps."""
    batch = {
        "input_ids": torch.tensor([[20, 21, 22, 2], [23, 24, 2, 1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "labels": torch.tensor([[25, 26, 27, 2], [28, 2, -100, -100]]),
    }
    batch["decoder_input_ids"] = torch.tensor([[START, 25, 26, 27], [START, 28, 1, 1]])
    constraint = SequenceConstraint.from_ids(
        request_ids.inputs,
        request_ids.target,
        request_ids.alternatives,
        decoder_start_token_id=START,
        pad_token_id=1,
    )
    learnable = LearnableEditor("rmsprop", learn_learning_rate=True, learning_rate=1e-3, beta=0.6).double()
    return SimpleNamespace(
        model=marian.eval(), learnable=learnable, batch=batch, constraint=constraint, request=request_ids
    )


def task_inputs(setting):
    return {key: value for key, value in setting.batch.items() if key != "labels"}


def task_logits(setting):
    return setting.model(**task_inputs(setting), use_cache=False).logits


def whole_objective(setting, create_graph=True, reference_logits=None):
    """Eq. 2 by the package; `reference_logits` holds the locality term's (constant) reference fixed."""
    labels = setting.batch["labels"]
    logits = task_logits(setting)
    base = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    result = edit(
        setting.model,
        setting.constraint,
        setting.learnable.build(),
        "last_decoder_layer",
        max_steps=NUM_STEPS,
        create_graph=create_graph,
    )
    assert result.num_steps == NUM_STEPS and not result.success
    functional_model = FunctionalModel(setting.model, list(result.params), create_graph)
    edited_logits = functional_model(result.params, **task_inputs(setting), use_cache=False).logits
    locality = token_locality_loss(logits if reference_logits is None else reference_logits, edited_logits, labels)
    return objective(base, edit_loss(result.loss), locality, EDIT_COEF, LOCALITY_COEF)


def oracle_objective(setting):
    """Eq. 2 by the oracle: every row a call of the whole model, nothing shared."""
    model, labels, request = setting.model, setting.batch["labels"], setting.request
    names = [name for name, _ in model.named_parameters() if name.startswith("model.decoder.layers.1.")]
    params = [model.get_parameter(name) for name in names]

    def forward(theta):
        pieces = theta.split([param.numel() for param in params])
        local = {n: piece.view_as(p) for n, piece, p in zip(names, pieces, params, strict=True)}
        return lambda **inputs: functional_call(model, local, (), inputs)

    def constraint(theta):
        return reference.sequence_constraint(
            forward(theta), request.inputs, request.target, request.alternatives, START
        )

    alpha = torch.exp(setting.learnable.learning_rate)
    beta = 1 / (1 + torch.exp(-setting.learnable.beta))
    theta = torch.cat([param.flatten() for param in params])
    theta, losses = reference.unrolled_edit(
        constraint, theta, functools.partial(reference.rmsprop, alpha=alpha, beta=beta), NUM_STEPS
    )
    logits = task_logits(setting)
    edited_logits = forward(theta)(**task_inputs(setting), use_cache=False).logits
    locality = reference.token_locality(logits.detach(), edited_logits, labels)
    base = reference.cross_entropy(logits, labels)
    return reference.objective(base, losses[-1], locality, EDIT_COEF, LOCALITY_COEF)


def trainable(setting):
    params = {name: param for name, param in setting.model.named_parameters() if param.requires_grad}
    return {**params, **{f"editor.{name}": param for name, param in setting.learnable.named_parameters()}}


def gradient(setting, value):
    params = trainable(setting)
    return dict(zip(params, torch.autograd.grad(value, list(params.values())), strict=True))


def sampled_coordinates(setting, grads):
    """Coordinates of every part of the model and the two hyperparameters, none of a vanishing gradient."""
    generator = torch.Generator().manual_seed(3)
    parts = {
        "model.shared": 6,
        "model.encoder.layers.0": 6,
        "model.encoder.layers.1": 6,
        "model.decoder.layers.0": 9,
        "model.decoder.layers.1": 11,
    }
    for part, count in parts.items():
        names = [name for name in grads if name.startswith(part)]
        flat = torch.cat([grads[name].flatten() for name in names])
        owners = [(name, index) for name in names for index in range(grads[name].numel())]
        candidates = (flat.abs() > 0.05 * flat.square().mean().sqrt()).nonzero().flatten()
        for choice in candidates[torch.randperm(len(candidates), generator=generator)[:count]].tolist():
            yield owners[choice]
    yield "editor.learning_rate", 0
    yield "editor.beta", 0


def central_difference(function, coordinate, step):
    """Fourth order: `(8 (f(h) - f(-h)) - (f(2h) - f(-2h))) / 12h`."""
    original, values = coordinate.item(), {}
    for factor in (-2, -1, 1, 2):
        coordinate.fill_(original + factor * step)
        values[factor] = function().item()
    coordinate.fill_(original)
    return (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)


def test_gradient_equals_finite_differences(setting):
    grads = gradient(setting, whole_objective(setting))
    reference_logits = task_logits(setting).detach()
    params, errors = trainable(setting), {}

    def value():
        return whole_objective(setting, create_graph=False, reference_logits=reference_logits)

    with torch.no_grad():
        for name, index in sampled_coordinates(setting, grads):
            wanted = grads[name].flatten()[index].item()
            numeric = central_difference(value, params[name].view(-1)[index], step=STEP)
            errors[name, index] = abs(numeric - wanted) / abs(wanted)
    assert len(errors) == 40
    assert max(errors.values()) <= 1e-6, sorted(errors.items(), key=lambda item: -item[1])[:5]


def test_gradient_equals_the_oracles(setting):
    ours, expected = whole_objective(setting), oracle_objective(setting)
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)
    grads, expected_grads = gradient(setting, ours), gradient(setting, expected)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name], grad, rtol=0, atol=1e-10, msg=name)


def test_every_part_of_the_objective_takes_part(setting):
    value = whole_objective(setting)
    with torch.no_grad():
        base = F.cross_entropy(task_logits(setting).flatten(0, 1), setting.batch["labels"].flatten())
        result = edit(setting.model, setting.constraint, setting.learnable.build(), "last_decoder_layer", NUM_STEPS)
    edit_term = EDIT_COEF * result.loss
    assert edit_term > 0.1 and value - base - edit_term > 0.1
