"""Edits without graph leave nothing behind: memory stays flat over any number of them."""

import copy
import gc
import tracemalloc
import weakref

import pytest
import torch

from editable_hf.core import ClassConstraint, FunctionalModel, SequenceConstraint, edit, rmsprop

LAYER = "last_decoder_layer"


def constraint_for(request_ids, source):
    """A request of its own, so that nothing can be found again from an earlier edit."""
    inputs = {"input_ids": torch.tensor([source]), "attention_mask": torch.ones(1, len(source), dtype=torch.long)}
    return SequenceConstraint.from_ids(
        inputs, request_ids.target, request_ids.alternatives, decoder_start_token_id=1, pad_token_id=1
    )


def live_tensors():
    # Kind by kind: hypothesis and transformers keep lazy modules whose attributes must not be touched.
    return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())


def run_edits(model, request_ids, count, first=0):
    for number in range(first, first + count):
        source = [3 + number % 30, 3 + number // 30 % 30, 5 + number % 7, 2]
        result = edit(model, constraint_for(request_ids, source), rmsprop(1e-3), LAYER, max_steps=1)
        assert result.num_steps == 1
    return result


def assert_flat(model, request_ids, count):
    run_edits(model, request_ids, 10)
    gc.collect()
    tracemalloc.start()
    try:
        run_edits(model, request_ids, 5, first=10)
        gc.collect()
        before, memory = live_tensors(), tracemalloc.get_traced_memory()[0]
        run_edits(model, request_ids, count, first=15)
        gc.collect()
        after, grown = live_tensors(), tracemalloc.get_traced_memory()[0] - memory
    finally:
        tracemalloc.stop()
    assert after == before
    # One kept tensor an edit would be 500 bytes of Python objects each, a kept recording some 100 times that.
    assert grown < 100 * count


def test_memory_is_flat(tiny_marian, request_ids):
    assert_flat(tiny_marian, request_ids, 120)


@pytest.mark.slow
def test_memory_is_flat_over_a_thousand_edits(tiny_marian, request_ids):
    assert_flat(tiny_marian, request_ids, 1000)


def test_edit_frees_what_it_made_without_the_garbage_collector(tiny_marian, request_ids, monkeypatch):
    # A cycle through a recording would keep the activations of many edits until the collector runs.
    made = []
    init = FunctionalModel.__init__

    def watched(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(weakref.ref(self))

    monkeypatch.setattr(FunctionalModel, "__init__", watched)
    run_edits(tiny_marian, request_ids, 3)
    gc.collect()
    gc.disable()
    try:
        before = live_tensors()
        run_edits(tiny_marian, request_ids, 20, first=3)
        assert live_tensors() == before
    finally:
        gc.enable()
    assert len(made) == 23 and not any(reference() for reference in made)


@pytest.mark.parametrize("replay", [True, False])
def test_result_has_no_graph_and_the_model_is_never_copied(tiny_marian, request_ids, replay, monkeypatch):
    def refuse(*args):
        raise AssertionError("the model was copied")

    ids = {name: (id(param), param.data_ptr()) for name, param in tiny_marian.named_parameters()}
    with monkeypatch.context() as patch:
        patch.setattr(copy, "deepcopy", refuse)
        patch.setattr(type(tiny_marian), "__deepcopy__", refuse, raising=False)
        constraint = constraint_for(request_ids, [5, 6, 7, 2])
        result = edit(tiny_marian, constraint, rmsprop(1e-3), LAYER, max_steps=2, replay=replay)
    assert result.num_steps == 2
    for tensor in (result.loss, *result.params.values()):
        assert tensor.grad_fn is None and not tensor.requires_grad
    assert {name: (id(param), param.data_ptr()) for name, param in tiny_marian.named_parameters()} == ids
    assert all(param.grad is None for param in tiny_marian.parameters())
    own = {pointer for _, pointer in ids.values()}
    assert not own & {tensor.data_ptr() for tensor in result.params.values()}


def test_differentiable_edit_is_freed_with_its_result(classifier):
    classifier.eval()
    constraint = ClassConstraint({"features": torch.linspace(-1, 2, 6, dtype=torch.float64).unsqueeze(0)}, 0)
    if classifier(**constraint.inputs).logits.argmax() == 0:
        constraint = ClassConstraint(constraint.inputs, 1)

    def run():
        result = edit(classifier, constraint, rmsprop(1e-4), "second", max_steps=3, create_graph=True)
        assert result.num_steps == 3 and result.loss.grad_fn is not None

    run()
    gc.collect()
    before = live_tensors()
    for _ in range(10):
        run()
    gc.collect()
    assert live_tensors() == before
