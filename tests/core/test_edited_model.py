"""What `edit` and `edited` leave of the model, of its gradients, modes and statistics."""

import copy

import pytest
import torch
from editing_checks import (
    assert_unchanged,
    features,
    oracle_sequence_constraint,
    sequence_constraint,
    snapshot,
    wrong_class,
)
from torch import nn

from editable_hf.core import ClassConstraint, LearnableEditor, edit, edited, rmsprop, select_parameters

# What it leaves alone


@pytest.mark.parametrize("create_graph", [False, True])
def test_model_is_left_as_it_was(marian, request_ids, create_graph):
    marian.train()
    marian.model.encoder.layers[1].eval()
    marian.model.decoder.layers[0].fc1.eval()
    ids = request_ids.inputs["input_ids"]
    marian(input_ids=ids, labels=ids).loss.backward()
    before = snapshot(marian)
    result = edit(
        marian, sequence_constraint(marian, request_ids), rmsprop(1e-3), "*", max_steps=2, create_graph=create_graph
    )
    assert result.num_steps == 2
    assert_unchanged(marian, before)


@pytest.mark.parametrize("failing_call", [1, 3])
def test_model_is_left_as_it_was_after_an_exception(marian, request_ids, failing_call):
    marian.train()
    marian.model.decoder.layers[0].eval()
    before, calls = snapshot(marian), []

    def constraint(model, params):
        calls.append(len(calls))
        if len(calls) == failing_call:
            raise RuntimeError("the constraint failed")
        return sequence_constraint(marian, request_ids)(model, params)

    with pytest.raises(RuntimeError, match="the constraint failed"):
        edit(marian, constraint, rmsprop(1e-4), "last_decoder_layer")
    assert len(calls) == failing_call
    assert_unchanged(marian, before)


def test_edit_from_train_mode_equals_edit_from_eval_mode(marian, request_ids):
    constraint = sequence_constraint(marian, request_ids)
    train = edit(marian.train(), constraint, rmsprop(0.01), "last_decoder_layer", max_steps=3)
    evaluated = edit(marian.eval(), constraint, rmsprop(0.01), "last_decoder_layer", max_steps=3)
    assert train.history == evaluated.history


@pytest.mark.parametrize("create_graph", [False, True])
def test_running_statistics_do_not_move(batch_norm_classifier, create_graph):
    model = batch_norm_classifier
    model.train()(torch.randn(16, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    constraint = ClassConstraint({"features": features()}, wrong_class(model))
    before = snapshot(model.train())
    result = edit(model, constraint, rmsprop(0.05), "*", create_graph=create_graph)
    assert result.num_steps > 0
    assert_unchanged(model, before)


@pytest.mark.parametrize("max_steps", [0, 2])
def test_no_graph_is_left_without_create_graph(marian, request_ids, max_steps):
    learnable = LearnableEditor("rmsprop", learn_learning_rate=True).double()
    constraint = sequence_constraint(marian, request_ids)
    result = edit(marian, constraint, learnable.build(), "last_decoder_layer", max_steps=max_steps)
    for tensor in (*result.params.values(), result.loss):
        assert not tensor.requires_grad and tensor.grad_fn is None


def test_graph_reaches_everything_with_create_graph(marian, request_ids):
    learnable = LearnableEditor("rmsprop", learn_learning_rate=True).double()
    constraint = sequence_constraint(marian, request_ids)
    result = edit(marian, constraint, learnable.build(), "last_decoder_layer", max_steps=2, create_graph=True)
    (result.loss + sum(value.square().sum() for value in result.params.values())).backward()
    assert all(parameter.grad != 0 for parameter in learnable.parameters())
    without = {name for name, param in marian.named_parameters() if param.grad is None or not param.grad.any()}
    assert without <= {"model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"}


def test_edit_works_inside_no_grad_and_leaves_it_on(marian, request_ids):
    constraint = sequence_constraint(marian, request_ids)
    expected = edit(marian, constraint, rmsprop(0.01), "last_decoder_layer", max_steps=2)
    with torch.no_grad():
        result = edit(marian, constraint, rmsprop(0.01), "last_decoder_layer", max_steps=2)
        assert not torch.is_grad_enabled()
    assert result.history == expected.history


@pytest.mark.parametrize("create_graph", [False, True])
def test_frozen_parameters_can_be_edited(marian, request_ids, create_graph):
    constraint = sequence_constraint(marian, request_ids)
    expected = edit(marian, constraint, rmsprop(0.01), "last_decoder_layer", max_steps=2)
    marian.requires_grad_(False)
    result = edit(marian, constraint, rmsprop(0.01), "last_decoder_layer", max_steps=2, create_graph=create_graph)
    assert not any(param.requires_grad for param in marian.parameters())
    assert result.history == expected.history


@pytest.mark.parametrize("max_steps", [0, 2])
def test_result_does_not_follow_a_later_change_of_the_model(classifier, max_steps):
    constraint = ClassConstraint({"features": features()}, wrong_class(classifier))
    result = edit(classifier, constraint, rmsprop(0.05), "head", max_steps=max_steps)
    kept = {name: value.clone() for name, value in result.params.items()}
    with torch.no_grad():
        classifier.head.weight.zero_()
    assert all(torch.equal(result.params[name], kept[name]) for name in kept)


# edited()


def perturbed(model, layers="last_decoder_layer"):
    return {name: param.detach() + 0.1 for name, param in select_parameters(model, layers).items()}


def test_edited_applies_and_restores_bit_for_bit(marian, request_ids):
    before = snapshot(marian)
    result = edit(marian, sequence_constraint(marian, request_ids), rmsprop(0.01), "last_decoder_layer", max_steps=3)
    with edited(marian, result) as inside:
        assert inside is marian
        own = dict(marian.named_parameters())
        assert all(torch.equal(own[name], value) for name, value in result.params.items())
        value = oracle_sequence_constraint(marian, request_ids)(marian.eval())
        assert value.item() == pytest.approx(result.history[-1], abs=1e-10)
        marian.train(before[2][""])
    assert_unchanged(marian, before)


def test_edited_accepts_a_plain_dict_and_one_with_graph(marian):
    before, params = snapshot(marian), perturbed(marian)
    with edited(marian, {name: value.requires_grad_() * 1 for name, value in params.items()}):
        own = dict(marian.named_parameters())
        assert all(torch.equal(own[name], value) for name, value in params.items())
        assert all(own[name].is_leaf for name in params)
    assert_unchanged(marian, before)


def test_edited_restores_after_an_exception(marian):
    before = snapshot(marian)
    with pytest.raises(KeyError, match="inside"), edited(marian, perturbed(marian)):
        raise KeyError("inside")
    assert_unchanged(marian, before)


def test_edited_restores_when_applying_fails(marian):
    before, params = snapshot(marian), perturbed(marian)
    params[list(params)[-1]] = torch.zeros(3, 3, 3)
    with pytest.raises(RuntimeError), edited(marian, params):
        pass
    assert_unchanged(marian, before)


def test_edited_changes_tied_weights_together(seq2seq):
    (name,) = [name for name, _ in seq2seq.named_parameters() if name.endswith("shared.weight")]
    with edited(seq2seq, perturbed(seq2seq, name)):
        assert seq2seq.get_output_embeddings().weight is seq2seq.get_input_embeddings().weight


def test_edited_refuses_unknown_names(classifier):
    before = snapshot(classifier)
    params = {"head.bias": torch.zeros(5), "tail.bias": torch.zeros(5)}
    message = "The edit holds parameters that Classifier does not have: tail.bias"
    with pytest.raises(ValueError, match=message), edited(classifier, params):
        pass
    assert_unchanged(classifier, before)


def test_edits_can_be_nested_and_repeated(classifier):
    model, before = copy.deepcopy(classifier), snapshot(classifier)
    constraint = ClassConstraint({"features": features()}, wrong_class(model))
    first = edit(classifier, constraint, rmsprop(0.05), "head", max_steps=2)
    with edited(classifier, first):
        second = edit(classifier, constraint, rmsprop(0.05), "second", max_steps=2)
        assert second.history[0] == pytest.approx(first.history[-1], abs=1e-12)
        with edited(classifier, second):
            pass
    assert isinstance(model.head, nn.Linear)
    before[2].update(snapshot(classifier)[2])
    assert_unchanged(classifier, before)
