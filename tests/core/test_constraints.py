import dataclasses

import pytest
import reference
import torch

from editable_hf.core import ClassConstraint, FunctionalModel, SequenceConstraint


def build(inputs, target, alternatives, **options):
    options = {"decoder_start_token_id": 1, "pad_token_id": 1, **options}
    return SequenceConstraint.from_ids(inputs, target, alternatives, **options)


def functional(model):
    names = [name for name, _ in model.named_parameters()][:1]
    return FunctionalModel(model.eval(), names), {name: model.get_parameter(name) for name in names}


# SequenceConstraint: building


def test_empty_target(request_ids):
    with pytest.raises(ValueError, match="The edit's target is empty: give at least one token"):
        build(request_ids.inputs, [], [[3, 2]])


def test_target_too_long(request_ids):
    with pytest.raises(ValueError, match="The edit's target has 4 tokens, but the model decodes at most 3"):
        build(request_ids.inputs, [3, 4, 5, 2], [[3, 2]], max_length=3)


@pytest.mark.parametrize("alternatives", [[], [[3, 2]], [[3, 2], [3, 2]], [[], [3, 2]]])
def test_no_alternative_left(request_ids, alternatives):
    message = rf"No alternative differs from the target \({len(alternatives)} given\)"
    with pytest.raises(ValueError, match=message):
        build(request_ids.inputs, [3, 2], alternatives)


def test_target_of_the_greatest_length_is_accepted(request_ids):
    assert build(request_ids.inputs, [3, 4, 2], [[3, 2]], max_length=3).labels.shape == (2, 3)


def test_rows_are_the_target_then_the_distinct_alternatives_in_order(request_ids):
    constraint = build(request_ids.inputs, [5, 6, 2], [[7, 2], [5, 6, 2], [8, 9, 10, 2], [7, 2], []])
    assert constraint.labels.tolist() == [[5, 6, 2, -100], [7, 2, -100, -100], [8, 9, 10, 2]]
    assert constraint.decoder_input_ids.tolist() == [[1, 5, 6, 2], [1, 7, 2, 1], [1, 8, 9, 10]]


def test_decoder_start_and_padding_tokens_are_used(request_ids):
    constraint = build(request_ids.inputs, [5, 6, 4, 2], [[7, 2]], decoder_start_token_id=30, pad_token_id=31)
    assert constraint.decoder_input_ids.tolist() == [[30, 5, 6, 4], [30, 7, 2, 31]]


def test_alternatives_are_cut_at_the_greatest_length_before_comparing(request_ids):
    constraint = build(request_ids.inputs, [5, 6, 2], [[7, 8, 9, 2], [7, 8, 9, 10, 2], [5, 6, 2, 2]], max_length=3)
    assert constraint.labels.tolist() == [[5, 6, 2], [7, 8, 9]]


def test_to_moves_every_tensor_and_keeps_the_rest(request_ids):
    constraint = build(request_ids.inputs, [5, 6, 2], [[7, 2]], length_penalty=0.7).to(torch.device("meta"))
    tensors = [*constraint.inputs.values(), constraint.decoder_input_ids, constraint.labels]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert constraint.length_penalty == 0.7
    assert request_ids.inputs["input_ids"].device.type == "cpu"


# SequenceConstraint: value


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 1.0, 2.0])
def test_scores_equal_the_oracles(seq2seq, request_ids, length_penalty):
    start = seq2seq.config.decoder_start_token_id
    constraint = build(
        request_ids.inputs,
        request_ids.target,
        request_ids.alternatives,
        decoder_start_token_id=start,
        pad_token_id=seq2seq.config.pad_token_id,
        length_penalty=length_penalty,
    )
    model, params = functional(seq2seq)
    scores = constraint.scores(model, params)
    rows = [request_ids.target, *request_ids.alternatives]
    expected = [reference.sequence_score(seq2seq, request_ids.inputs, ids, start, length_penalty) for ids in rows]
    tolerance = 1e-5 if seq2seq.config.model_type == "t5" else 1e-10  # T5's layer norm has a part in float32
    torch.testing.assert_close(scores, torch.stack(expected), rtol=0, atol=tolerance)
    value = reference.sequence_constraint(
        seq2seq, request_ids.inputs, request_ids.target, request_ids.alternatives, start, length_penalty
    )
    torch.testing.assert_close(constraint(model, params), value, rtol=0, atol=tolerance)


def test_gradient_equals_that_of_all_rows(marian, request_ids):
    constraint = build(request_ids.inputs, request_ids.target, request_ids.alternatives)
    model = FunctionalModel(marian.eval(), ["model.shared.weight"], create_graph=True)
    weight = marian.model.shared.weight
    grad = torch.autograd.grad(constraint(model, {"model.shared.weight": weight}), weight)[0]
    value = reference.sequence_constraint(marian, request_ids.inputs, request_ids.target, request_ids.alternatives, 1)
    torch.testing.assert_close(grad, torch.autograd.grad(value, weight)[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("pad", [0, 1, 17])
def test_scores_do_not_depend_on_padding(marian, request_ids, pad):
    short = build(request_ids.inputs, [11, 2], [[12, 2]])
    padded = build(request_ids.inputs, [11, 2], [[12, 2], [13, 14, 15, 16, 17, 2]], pad_token_id=pad)
    model, params = functional(marian)
    torch.testing.assert_close(padded.scores(model, params)[:2], short.scores(model, params), rtol=0, atol=1e-12)


def test_padding_of_the_source_is_masked(marian, request_ids):
    ids = request_ids.inputs["input_ids"]
    padded = {
        "input_ids": torch.cat([ids, torch.tensor([[1, 9]])], 1),
        "attention_mask": torch.cat([torch.ones_like(ids), torch.zeros(1, 2, dtype=torch.long)], 1),
    }
    model, params = functional(marian)
    values = [
        build(i, request_ids.target, request_ids.alternatives)(model, params) for i in (request_ids.inputs, padded)
    ]
    torch.testing.assert_close(*values, rtol=0, atol=1e-10)


def test_value_at_a_tie_of_alternatives_is_that_of_either(marian, request_ids):
    tied = build(request_ids.inputs, [11, 2], [[12, 2], [13, 2]])
    tied = dataclasses.replace(
        tied, labels=tied.labels[[0, 1, 1]], decoder_input_ids=tied.decoder_input_ids[[0, 1, 1]]
    )
    model, params = functional(marian)
    single = build(request_ids.inputs, [11, 2], [[12, 2]])
    torch.testing.assert_close(tied(model, params), single(model, params), rtol=0, atol=1e-12)


def test_tie_with_the_target_is_exactly_zero(marian, request_ids):
    constraint = build(request_ids.inputs, [11, 2], [[12, 2]])
    tied = dataclasses.replace(
        constraint, labels=constraint.labels[[0, 0]], decoder_input_ids=constraint.decoder_input_ids[[0, 0]]
    )
    model, params = functional(marian)
    assert tied(model, params) == 0


def test_length_penalty_may_change_the_winner(marian, request_ids):
    target, long = [11, 2], [21, 22, 23, 24, 25, 26, 27, 2]
    model, params = functional(marian)
    values = [
        build(request_ids.inputs, target, [long], length_penalty=penalty)(model, params).item() for penalty in (0, 5)
    ]
    assert values[0] < 0 < values[1]


# ClassConstraint


class Table(torch.nn.Module):
    """A "model" whose parameter is its logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits_table = torch.nn.Parameter(torch.tensor([logits], dtype=torch.float64))

    def forward(self, scale):
        return type("Output", (), {"logits": self.logits_table * scale})


def class_value(logits, target):
    model = Table(logits)
    params = dict(model.named_parameters())
    constraint = ClassConstraint({"scale": torch.ones((), dtype=torch.float64)}, target)
    return constraint(FunctionalModel(model, list(params)), params), model.logits_table


def test_class_constraint_is_the_signed_margin():
    assert class_value([1.0, 4.0, 2.0], 1)[0].item() == pytest.approx(-2.0)
    assert class_value([1.0, 4.0, 2.0], 2)[0].item() == pytest.approx(2.0)
    assert class_value([1.0, 4.0, 2.0], 0)[0].item() == pytest.approx(3.0)


def test_class_constraint_of_a_tie_is_exactly_zero():
    assert class_value([0.3, 0.7, 0.7], 1)[0].item() == 0
    assert class_value([0.3, 0.7, 0.7], 2)[0].item() == 0


@pytest.mark.parametrize("target", range(5))
def test_class_constraint_equals_the_oracle(target):
    logits = torch.randn(5, generator=torch.Generator().manual_seed(target)).tolist()
    value, table = class_value(logits, target)
    oracle = table.detach().clone().requires_grad_()
    expected = reference.class_constraint(oracle[0], target)
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(value, table)[0], torch.autograd.grad(expected, oracle)[0]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_class_constraint_moves_its_inputs():
    constraint = ClassConstraint({"scale": torch.ones(())}, 3).to(torch.device("meta"))
    assert constraint.inputs["scale"].device.type == "meta" and constraint.target == 3


@pytest.mark.parametrize("target", range(4))
def test_class_constraint_of_a_batch_is_that_of_its_worst_example(target):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(target)).double()
    model = Table([0.0])
    model.logits_table = torch.nn.Parameter(logits)
    params = dict(model.named_parameters())
    constraint = ClassConstraint({"scale": torch.ones((), dtype=torch.float64)}, target)
    value = constraint(FunctionalModel(model, list(params)), params)
    oracle = logits.clone().requires_grad_()
    expected = torch.stack([reference.class_constraint(row, target) for row in oracle]).max()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
    grads = torch.autograd.grad(value, model.logits_table)[0], torch.autograd.grad(expected, oracle)[0]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("target", [-1, 3])
def test_class_that_the_model_does_not_have(target):
    with pytest.raises(ValueError, match=f"`target` must be a class from 0 to 2, got {target}"):
        class_value([1.0, 4.0, 2.0], target)
