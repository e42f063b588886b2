"""`SequenceConstraint` against every row as a call of the whole model, nothing shared, nothing left out."""

import dataclasses
import functools

import pytest
import reference
import torch
from replay_checks import perturbed
from torch.func import functional_call

from editable_hf.core import LearnableEditor, SequenceConstraint, edit, rmsprop
from editable_hf.core.functional import FunctionalModel

CASES = {
    "shared prefixes": (7, [[11, 12, 13, 2], [11, 12, 14, 15, 2], [11, 16, 2], [11, 12, 13, 17, 2]]),
    "nothing shared": (7, [[11, 12, 2], [13, 14, 2], [15, 2]]),
    "source as long as the rows": (5, [[11, 12, 13, 2], [11, 12, 14, 15, 2], [11, 2]]),
    "source as long as the target": (4, [[11, 12, 13, 2], [11, 12, 14, 15, 16, 2], [11, 2]]),
    "target a prefix of an alternative": (6, [[11, 12], [11, 12, 13, 2], [11, 14]]),
    "alternative a prefix of the target": (6, [[11, 12, 13, 2], [11, 12], [11]]),
    "as many rows as tokens": (3, [[11, 12, 13, 2], [11, 14, 2], [15, 2], [11, 12, 2]]),
    "two rows of two tokens": (2, [[11, 2], [12, 2]]),
    "one token each": (1, [[11], [12], [13]]),
}
every_case = pytest.mark.parametrize("case", CASES)
EDITABLE = {"marian": "model.decoder.layers.1.", "bart": "model.decoder.layers.1.", "t5": "decoder.block.1."}


def source_of(length):
    source = torch.arange(20, 20 + length).unsqueeze(0)
    return {"input_ids": source, "attention_mask": torch.ones_like(source)}


def build(model, case, **options):
    length, rows = CASES[case]
    config = model.config
    return SequenceConstraint.from_ids(
        source_of(length),
        rows[0],
        rows[1:],
        decoder_start_token_id=config.decoder_start_token_id,
        pad_token_id=config.pad_token_id,
        **options,
    )


def oracle(model, case, length_penalty=0.0):
    """The constraint as a function of edited parameters, by the whole model row by row."""
    length, rows = CASES[case]
    start = model.config.decoder_start_token_id

    def constraint(params):
        def forward(**inputs):
            return functional_call(model, params, (), inputs)

        return reference.sequence_constraint(forward, source_of(length), rows[0], rows[1:], start, length_penalty)

    return constraint


def selected(model, prefix=None):
    prefix = EDITABLE[model.config.model_type] if prefix is None else prefix
    return {n: p for n, p in model.named_parameters() if n.startswith(prefix) and p.requires_grad}


def trainable(model):
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def gradients(value, leaves):
    grads = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, grads, strict=True))


def assert_same_gradients(ours, expected, tolerance):
    assert sum(bool(grad.any()) for grad in expected.values()) > len(expected) / 2
    for name, grad in expected.items():
        torch.testing.assert_close(ours[name], grad, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def tolerance_of(model):
    return 1e-5 if model.config.model_type == "t5" else 1e-11  # T5's layer norm has a part in float32


@every_case
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_value_and_gradient(seq2seq, case, length_penalty):
    model, params, leaves = seq2seq.eval(), selected(seq2seq), trainable(seq2seq)
    constraint, tolerance = build(model, case, length_penalty=length_penalty), tolerance_of(model)
    expected = oracle(model, case, length_penalty)({name: param * 1.3 for name, param in params.items()})
    expected_grads = gradients(expected, leaves)
    for replay in (True, False):
        functional_model = FunctionalModel(model, list(params), create_graph=True, replay=replay)
        constraint(functional_model, params)  # recorded; what follows is a replay
        value = constraint(functional_model, {name: param * 1.3 for name, param in params.items()})
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)
        assert_same_gradients(gradients(value, leaves), expected_grads, 10 * tolerance)


EDITED = ["model.decoder.layers.1.", "model.encoder.layers.1.", "model.shared.", ""]
EDIT_CASES = [("shared prefixes", prefix) for prefix in EDITED]
EDIT_CASES += [("source as long as the rows", prefix) for prefix in EDITED]
EDIT_CASES += [(case, EDITED[0]) for case in CASES if (case, EDITED[0]) not in EDIT_CASES]


@pytest.mark.parametrize(("case", "prefix"), EDIT_CASES)
def test_gradient_through_an_edit(marian, case, prefix):
    model = marian.eval()
    names, max_steps = list(selected(model, prefix)), 2
    learnable = LearnableEditor("rmsprop", learn_learning_rate=True, learning_rate=1e-3, beta=0.6).double()
    leaves = {**trainable(model), **{f"editor.{name}": value for name, value in learnable.named_parameters()}}
    options = {"max_steps": max_steps, "create_graph": True}
    # Negative constraints stop at once: make it unattainable, the gradient is the same.
    constraint, expected = build(model, case), oracle(model, case)
    ours = [
        edit(model, lambda m, p: constraint(m, p) + 20, learnable.build(), names, replay=replay, **options)
        for replay in (True, False)
    ]
    shapes = [model.get_parameter(name).shape for name in names]

    def unflatten(theta):
        pieces = theta.split([shape.numel() for shape in shapes])
        return {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}

    alpha, beta = torch.exp(learnable.learning_rate), torch.sigmoid(learnable.beta)
    theta = torch.cat([model.get_parameter(name).flatten() for name in names])
    theta, losses = reference.unrolled_edit(
        lambda flat: expected(unflatten(flat)) + 20,
        theta,
        functools.partial(reference.rmsprop, alpha=alpha, beta=beta),
        max_steps,
    )
    wanted = gradients(losses[-1] + 3 * theta.sin().sum(), leaves)
    for result in ours:
        assert result.num_steps == max_steps
        assert result.history == pytest.approx([loss.item() for loss in losses], abs=1e-10)
        moved = torch.cat([result.params[name].flatten() for name in names])
        torch.testing.assert_close(moved, theta, rtol=0, atol=1e-10)
        assert_same_gradients(gradients(result.loss + 3 * moved.sin().sum(), leaves), wanted, 1e-7)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_edits_with_and_without_replay_agree(seq2seq, length_penalty):
    constraint, layers = build(seq2seq, "shared prefixes", length_penalty=length_penalty), list(selected(seq2seq))
    results = [
        edit(seq2seq, lambda m, p: constraint(m, p) + 3, rmsprop(3e-3), layers, max_steps=6, replay=replay)
        for replay in (True, False)
    ]
    assert results[0].num_steps == results[1].num_steps > 1
    assert results[0].history == pytest.approx(results[1].history, abs=1e-10)
    for name, value in results[0].params.items():
        torch.testing.assert_close(value, results[1].params[name], rtol=0, atol=1e-10)


def test_binding_alternative_may_change_between_steps(marian):
    constraint, binding, names = build(marian, "one token each"), [], list(selected(marian))
    model = FunctionalModel(marian.eval(), names)
    for seed in range(8):
        values = perturbed(marian, names, seed)
        with torch.no_grad():
            value, expected = constraint(model, values), oracle(marian, "one token each")(values)
            binding.append(int(constraint.scores(model, values)[1:].argmax()))
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-11)
    assert len(set(binding)) > 1


# Ties


def with_rows(constraint, rows):
    labels, prefixes = constraint.labels[rows], constraint.decoder_input_ids[rows]
    return dataclasses.replace(constraint, labels=labels, decoder_input_ids=prefixes)


def test_tie_of_alternatives_has_the_gradient_of_either(marian):
    single = build(marian, "two rows of two tokens")
    tied = with_rows(single, [0, 1, 1])
    grads = []
    for constraint in (single, tied):
        params = selected(marian)
        model = FunctionalModel(marian.eval(), list(params), create_graph=True)
        grads.append(gradients(constraint(model, params), trainable(marian)))
    assert_same_gradients(grads[1], grads[0], 1e-12)


def test_tie_with_the_target_is_zero_and_so_is_its_gradient(marian):
    tied = with_rows(build(marian, "two rows of two tokens"), [0, 0])
    params = selected(marian)
    value = tied(FunctionalModel(marian.eval(), list(params), create_graph=True), params)
    assert abs(value) < 1e-12  # equal rows of a batch may be added up in different orders
    for name, grad in gradients(value, trainable(marian)).items():
        torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=1e-12, msg=name)


# Constraints that are made anew, and encoders whose output is a view


def test_constraints_made_at_every_call_are_told_apart(marian):
    length, rows = CASES["shared prefixes"]
    inputs, start = source_of(length), marian.config.decoder_start_token_id
    params = selected(marian)
    model = FunctionalModel(marian.eval(), list(params))
    for token in range(20, 36):  # freed after each call, so that the next one may get its id
        target = [token, token + 1, 2]
        constraint = SequenceConstraint.from_ids(
            inputs, target, rows, decoder_start_token_id=start, pad_token_id=marian.config.pad_token_id
        )
        with torch.no_grad():
            value = constraint(model, params)
            expected = reference.sequence_constraint(marian, inputs, target, rows, start)
        del constraint
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-11)


def test_encoder_whose_output_is_a_view(marian):
    encoder = marian.model.encoder
    own = encoder.forward

    def transposed_twice(*args, **kwargs):
        output = own(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.transpose(0, 1).contiguous().transpose(0, 1)
        return output

    encoder.forward = transposed_twice
    constraint, expected = build(marian, "shared prefixes"), oracle(marian, "shared prefixes")
    params = selected(marian, "model.encoder.")
    model = FunctionalModel(marian.eval(), list(params))
    for scale in torch.linspace(0.5, 1.5, 12):
        values = {name: param.detach() * scale for name, param in params.items()}
        with torch.no_grad():
            torch.testing.assert_close(constraint(model, values), expected(values), rtol=0, atol=1e-11)
