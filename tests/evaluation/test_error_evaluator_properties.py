from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tiny_images import NUM_CLASSES, changed_names, image_rows, snapshot, tiny_extra

from editable_hf import ClassConstraint, edit, edited, rmsprop
from editable_hf.core import adam, gd, rprop, select_parameters
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator

EDITORS = {"gd": gd, "rprop": rprop, "rmsprop": rmsprop, "adam": adam}
PARTS = ["stem", "chain1", "chain2", "chain3", "head", "extra", "layer2.0.bn1", "*.bias", "all"]


@given(
    layers=st.lists(st.sampled_from(PARTS), min_size=1, max_size=3, unique=True),
    editor=st.sampled_from(sorted(EDITORS)),
    exponent=st.floats(-4, 1),
    seed=st.integers(0, 10**6),
    training=st.booleans(),
    together=st.integers(1, 3),
)
def test_no_edit_touches_statistics_or_other_layers(layers, editor, exponent, seed, training, together):
    model, rows = tiny_extra(seed % 7).train(training), image_rows(6, seed=seed)
    before, selected = snapshot(model), set(select_parameters(model, layers))
    requests = make_image_requests([row["labels"] for row in rows], NUM_CLASSES, 3, seed)
    evaluator = ErrorDrawdownEvaluator(model, rows, layers=layers, edits_together=together, batch_size=4)
    for request in requests:
        constraint = ClassConstraint(evaluator.request_inputs(request), request["target"])
        result = edit(model, constraint, EDITORS[editor](10**exponent), layers, max_steps=2)
        assert set(result.params) == selected and changed_names(model, before) == []
        with edited(model, result):
            evaluator.predict([])
            changed = set(changed_names(model, before))
            assert changed <= selected and (changed == set()) == (result.num_steps == 0)
        assert changed_names(model, before) == []
    evaluator.evaluate(requests, EDITORS[editor](10**exponent), max_steps=2, progress=None)
    assert changed_names(model, before) == [] and model.training == training
