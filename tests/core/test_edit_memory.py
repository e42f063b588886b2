"""Edits without graph leave nothing behind: memory stays flat over any number of them."""

import copy
import gc
import os
import weakref
from pathlib import Path

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


def live_objects():
    """How many tensors, and how many objects of any kind that could hold one."""
    gc.collect()
    objects = gc.get_objects()
    return sum(issubclass(type(each), torch.Tensor) for each in objects), len(objects)


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_edits(model, request_ids, count, first=0):
    for number in range(first, first + count):
        source = [3 + number % 30, 3 + number // 30 % 30, 5 + number % 7, 2]
        result = edit(model, constraint_for(request_ids, source), rmsprop(1e-3), LAYER, max_steps=1)
        assert result.num_steps == 1


def classify(model, count, create_graph=False):
    for number in range(count):
        inputs = {"features": torch.linspace(-1, 2 + number / 100, 6, dtype=torch.float64).unsqueeze(0)}
        constraint = ClassConstraint(inputs, int(model.eval()(**inputs).logits.argmin()))
        result = edit(model, constraint, rmsprop(1e-4), "second", max_steps=2, create_graph=create_graph)
        assert result.num_steps == 2 and (result.loss.grad_fn is not None) == create_graph


def assert_flat(run, count, start=20):
    run(start)  # what is made once and kept: compiled patterns, caches of transformers
    before, memory = live_objects(), resident_bytes()
    run(count)
    tensors, objects = live_objects()
    # Other libraries drop and make an object now and then; one kept by every edit would be `count` of them.
    assert tensors - before[0] < count / 10 and objects - before[1] < count / 10
    # The smallest recording of these models takes some 50 kB.
    assert resident_bytes() - memory < 4e6 + 10e3 * count


@pytest.mark.parametrize("create_graph", [False, True])
def test_three_hundred_edits_of_a_classifier_leave_nothing(classifier, create_graph):
    assert_flat(lambda count: classify(classifier, count, create_graph), 300)


def test_edits_of_a_translation_model_leave_nothing(tiny_marian, request_ids):
    assert_flat(lambda count: run_edits(tiny_marian, request_ids, count), 40, start=10)


@pytest.mark.slow
def test_a_thousand_edits_of_a_translation_model_leave_nothing(tiny_marian, request_ids):
    assert_flat(lambda count: run_edits(tiny_marian, request_ids, count), 1000, start=10)


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
        run_edits(tiny_marian, request_ids, 10, first=3)
        assert len(made) == 13 and not any(reference() for reference in made)
    finally:
        gc.enable()


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
