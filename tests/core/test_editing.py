import functools

import pytest
import reference
import torch
from editing_checks import features, oracle_sequence_constraint, sequence_constraint, wrong_class
from transformers import T5ForConditionalGeneration

from editable_hf.core import (
    ClassConstraint,
    LearnableEditor,
    adam,
    edit,
    gd,
    momentum,
    rmsprop,
    rprop,
    scaled_gd,
)
from editable_hf.core.editing import constraint_value

LAST_LAYER = {"MarianMTModel": "model.decoder.layers.1", "BartForConditionalGeneration": "model.decoder.layers.1"}
FLOAT64, FLOAT32 = 1e-9, 1e-4  # tolerances
# factory, oracle, arguments for translation, arguments for classification
EDITORS = {
    "gd": (gd, reference.gd, (0.01,), (0.02,)),
    "scaled_gd": (scaled_gd, reference.scaled_gd, (0.3,), (0.3,)),
    "rprop": (rprop, reference.rprop, (0.01,), (0.05,)),
    "rmsprop": (rmsprop, reference.rmsprop, (0.01, 0.5), (0.05, 0.5)),
    "momentum": (momentum, reference.momentum, (0.01, 0.5), (0.01, 0.5)),
    "adam": (adam, reference.adam, (0.01, 0.2, 0.9), (0.05, 0.2, 0.9)),
}
# The gradient of a key projection's bias is 0 but for rounding (softmax ignores a shift), and RProp would follow the
# rounding's sign; the feed-forward part has no such coordinate.
FEED_FORWARD = ("fc1", "fc2", "DenseReluDense")

every_editor = pytest.mark.parametrize("name", EDITORS)
both_dtypes = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, FLOAT32)])


def feed_forward(model):
    prefix = LAST_LAYER.get(type(model).__name__, "decoder.block.1")
    names = [name for name, _ in model.named_parameters() if name.startswith(f"{prefix}.")]
    return [name for name in names if any(part in name for part in FEED_FORWARD) and "layer_norm" not in name]


def tolerance_of(model):
    # T5's layer norm takes its mean square in float32 whatever the dtype of the rest.
    return 1e-6 if isinstance(model, T5ForConditionalGeneration) else FLOAT64


def assert_same_edit(result, expected, tolerance=FLOAT64):
    params, losses = expected
    assert list(result.params) == list(params)
    for name, value in params.items():
        torch.testing.assert_close(
            result.params[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert result.history == pytest.approx(losses, abs=10 * tolerance)
    assert result.num_steps == len(losses) - 1
    assert result.success == (losses[-1] <= 0)
    assert result.loss.item() == result.history[-1]


# Against the oracle's loop


@every_editor
@both_dtypes
def test_translation_edit_follows_the_oracle(name, dtype, tolerance, seq2seq, request_ids):
    factory, oracle, arguments, _ = EDITORS[name]
    model = seq2seq.to(dtype)
    names = feed_forward(model)
    result = edit(model, sequence_constraint(model, request_ids), factory(*arguments), names, max_steps=6)
    expected = reference.edit_copy(
        model, oracle_sequence_constraint(model, request_ids), names, lambda grads: oracle(grads, *arguments), 6
    )
    assert result.num_steps > 0
    assert_same_edit(result, expected, max(tolerance, tolerance_of(model)))


@every_editor
@both_dtypes
def test_classification_edit_follows_the_oracle(name, dtype, tolerance, classifier):
    factory, oracle, _, arguments = EDITORS[name]
    model, x = classifier.to(dtype), features(dtype)
    target = wrong_class(model)
    result = edit(model, ClassConstraint({"features": x}, target), factory(*arguments), "*", max_steps=20)
    expected = reference.edit_copy(
        model,
        lambda copied: reference.class_constraint(copied(features=x).logits[0], target),
        [name for name, _ in model.named_parameters()],
        lambda grads: oracle(grads, *arguments),
        20,
    )
    assert result.success and result.num_steps > 1
    assert_same_edit(result, expected, tolerance)


def test_last_decoder_layer_edit_follows_the_oracle(seq2seq, request_ids):
    prefix = LAST_LAYER.get(type(seq2seq).__name__, "decoder.block.1")
    names = [name for name, _ in seq2seq.named_parameters() if name.startswith(f"{prefix}.")]
    constraint = sequence_constraint(seq2seq, request_ids)
    result = edit(seq2seq, constraint, rmsprop(0.003), "last_decoder_layer", max_steps=30)
    oracle = functools.partial(reference.rmsprop, alpha=0.003, beta=0.5)
    expected = reference.edit_copy(seq2seq, oracle_sequence_constraint(seq2seq, request_ids), names, oracle, 30)
    assert result.success and result.num_steps > 1
    assert_same_edit(result, expected, tolerance_of(seq2seq))


@pytest.mark.parametrize("create_graph", [False, True])
def test_edit_of_the_encoder_too_follows_the_oracle(seq2seq, request_ids, create_graph):
    names = [name for name, _ in seq2seq.named_parameters()]
    constraint = sequence_constraint(seq2seq, request_ids)
    result = edit(seq2seq, constraint, rmsprop(0.002), "*", max_steps=4, create_graph=create_graph)
    oracle = functools.partial(reference.rmsprop, alpha=0.002, beta=0.5)
    expected = reference.edit_copy(seq2seq, oracle_sequence_constraint(seq2seq, request_ids), names, oracle, 4)
    assert result.num_steps > 1
    assert_same_edit(result, expected, tolerance_of(seq2seq))


@pytest.mark.parametrize("create_graph", [False, True])
def test_edit_of_an_encoder_layer_alone_follows_the_oracle(marian, request_ids, create_graph):
    names = [name for name, _ in marian.named_parameters() if name.startswith("model.encoder.layers.0.")]
    constraint = sequence_constraint(marian, request_ids)
    result = edit(marian, constraint, rmsprop(0.01), "encoder.layers.0", max_steps=4, create_graph=create_graph)
    oracle = functools.partial(reference.rmsprop, alpha=0.01, beta=0.5)
    expected = reference.edit_copy(marian, oracle_sequence_constraint(marian, request_ids), names, oracle, 4)
    assert_same_edit(result, expected)


@pytest.mark.parametrize("create_graph", [False, True])
def test_edit_of_tied_embeddings_follows_the_oracle(seq2seq, request_ids, create_graph):
    (name,) = [name for name, _ in seq2seq.named_parameters() if name.endswith("shared.weight")]
    assert seq2seq.get_output_embeddings().weight is seq2seq.get_parameter(name)
    constraint = sequence_constraint(seq2seq, request_ids)
    result = edit(seq2seq, constraint, rmsprop(0.01), name, max_steps=4, create_graph=create_graph)
    oracle = functools.partial(reference.rmsprop, alpha=0.01, beta=0.5)
    expected = reference.edit_copy(seq2seq, oracle_sequence_constraint(seq2seq, request_ids), [name], oracle, 4)
    assert result.num_steps > 1
    assert_same_edit(result, expected, tolerance_of(seq2seq))


@every_editor
def test_graph_does_not_change_the_numbers(name, seq2seq, request_ids):
    factory, _, arguments, _ = EDITORS[name]
    constraint, layers = sequence_constraint(seq2seq, request_ids), feed_forward(seq2seq)
    plain = edit(seq2seq, constraint, factory(*arguments), layers, max_steps=4)
    graphed = edit(seq2seq, constraint, factory(*arguments), layers, max_steps=4, create_graph=True)
    assert_same_edit(graphed, (plain.params, plain.history), 1e-12)


# When it stops


def test_constraint_that_holds_needs_no_step(classifier):
    x = features()
    target = int(classifier.eval()(x).logits.argmax())
    result = edit(classifier, ClassConstraint({"features": x}, target), rmsprop(0.1), "*")
    assert result.success and result.num_steps == 0 and len(result.history) == 1 and result.loss < 0
    assert all(torch.equal(result.params[name], param) for name, param in classifier.named_parameters())


def test_tie_counts_as_success(classifier):
    result = edit(classifier, lambda model, params: 0 * params["head.bias"].sum(), gd(0.1), "head")
    assert result.success and result.num_steps == 0


@pytest.mark.parametrize("create_graph", [False, True])
def test_editor_may_choose_the_parameters_in_its_own_way(classifier, create_graph):
    """An `EditFunction` sees what a gradient editor sees, and its answer becomes the result."""
    model, constraint, asked = classifier, ClassConstraint({"features": features()}, 1), []

    def halve(functional_model, given, params, max_steps):
        asked.append((given, sorted(params), max_steps, functional_model.model.training))
        start, halved = given(functional_model, params), {name: 0.5 * param for name, param in params.items()}
        loss = given(functional_model, halved)
        return halved, loss, [start.item(), loss.item()]

    layers = sorted(name for name, _ in model.named_parameters())[:1]
    result = edit(model.train(), constraint, halve, layers, 7, create_graph)
    assert asked == [(constraint, layers, 7, False)]
    assert torch.equal(result.params[layers[0]], 0.5 * model.get_parameter(layers[0]))
    assert (result.num_steps, result.success) == (1, result.history[-1] <= 0)
    assert result.history[-1] == result.loss.item()
    assert result.params[layers[0]].requires_grad == result.loss.requires_grad == create_graph
    assert model.training


@pytest.mark.parametrize("create_graph", [False, True])
def test_no_steps_allowed(classifier, create_graph):
    constraint = ClassConstraint({"features": features()}, wrong_class(classifier))
    result = edit(classifier, constraint, rmsprop(0.1), "head", max_steps=0, create_graph=create_graph)
    assert not result.success and result.num_steps == 0 and len(result.history) == 1 and result.loss > 0


def test_failure_is_a_result(classifier):
    constraint = ClassConstraint({"features": features()}, wrong_class(classifier))
    result = edit(classifier, constraint, gd(1e-6), "head", max_steps=3)
    assert not result.success and result.num_steps == 3 and len(result.history) == 4 and result.loss > 0


def test_history_holds_the_constraint_before_each_step_and_after_the_last(classifier):
    constraint = ClassConstraint({"features": features()}, wrong_class(classifier))
    full = edit(classifier, constraint, rmsprop(0.02), "head", max_steps=20)
    for steps in range(full.num_steps + 1):
        part = edit(classifier, constraint, rmsprop(0.02), "head", max_steps=steps)
        assert part.history == full.history[: steps + 1]
    assert full.success and all(loss > 0 for loss in full.history[:-1])


def test_negative_max_steps(classifier):
    with pytest.raises(ValueError, match="`max_steps` must be 0 or more, got -1"):
        edit(classifier, lambda model, params: 0, gd(0.1), "head", max_steps=-1)


@pytest.mark.parametrize("editor", ["rmsprop", LearnableEditor("rmsprop")])
def test_what_is_no_editor_is_refused(classifier, editor):
    with pytest.raises(TypeError, match=r"must be an `Editor`, such as `rmsprop\(1e-3\)` or what `build\(\)`"):
        edit(classifier, ClassConstraint({"features": features()}, 1), editor, "*")


def test_selection_that_fits_nothing(classifier):
    with pytest.raises(ValueError, match="matches no parameter of Classifier"):
        edit(classifier, lambda model, params: 0, gd(0.1), "tail")


def test_value_of_a_constraint_is_what_an_edit_starts_from(classifier):
    constraint = ClassConstraint({"features": features()}, wrong_class(classifier))
    classifier.train()
    expected = edit(classifier, constraint, gd(0.1), "*", max_steps=0).history[0]
    assert constraint_value(classifier, constraint) == pytest.approx(expected, rel=1e-6) and classifier.training
