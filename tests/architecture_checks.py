"""What the tables of docs/models.md hold every kind of text model to, whatever it is called with."""

from __future__ import annotations

import torch

from editable_hf import EditorConfig, edit, request_constraint, rmsprop
from editable_hf.patches import Patch, apply_patches, revert_patches


def check_replay_in_edit(model, request, layers, tolerance):
    """Edits with and without replay take the same way, downwards; returns the first."""
    constraint = request_constraint(request, model)
    first, second = (edit(model, constraint, rmsprop(1e-2), layers, 3, replay=replay) for replay in (True, False))
    assert first.num_steps > 0 and first.failure is None and first.history[-1] < first.history[0]
    torch.testing.assert_close(first.history, second.history, rtol=tolerance, atol=tolerance)
    return first


def check_same_gradients(models, tolerance):
    """Both models have the same gradients, which are finite and somewhere not 0."""
    first, second = (
        {key: value.grad for key, value in model.named_parameters() if value.grad is not None} for model in models
    )
    assert first.keys() == second.keys() and any(grad.abs().sum() > 0 for grad in first.values())
    for key, grad in first.items():
        assert grad.isfinite().all(), key
        torch.testing.assert_close(grad, second[key], rtol=tolerance, atol=tolerance, msg=key)


def check_saved(trainer, auto_class, layers, inputs, folder, tolerance):
    """What the trainer saves, plain `from_pretrained` loads without a word, and it has the same logits."""
    trainer.save_model(str(folder))
    loaded, info = auto_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert EditorConfig.from_pretrained(folder).layers == [layers]
    model, loaded = trainer.model.eval(), loaded.to(trainer.model.dtype).eval()
    own, ours = dict(model.named_parameters()), dict(loaded.named_parameters())
    assert own.keys() - ours.keys() == {key for key in own if key.startswith("editor.")} and ours.keys() <= own.keys()
    assert all(torch.equal(value, own[key]) for key, value in ours.items())
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=tolerance, atol=tolerance)


def check_patch(model, request, layers, folder):
    """A patch that is saved gives the edited parameters, and is taken back bit for bit."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = edit(model, request_constraint(request, model), rmsprop(1e-2), layers, 3)
    patch = Patch.from_edit(model, result, request=request, editor=EditorConfig(), layers=layers)
    patch.save_pretrained(folder)
    apply_patches(model, [str(folder)])
    own = dict(model.named_parameters())
    assert all(torch.equal(own[key], value) for key, value in result.params.items())
    revert_patches(model)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def check_review(review, before, after):
    """A review has the changes between two lists of outputs, and there are some."""
    changed = [index for index, text in enumerate(before) if text != after[index]]
    assert changed and sorted(change.index for change in review.changes) == changed
    assert {c.index: (c.before, c.after) for c in review.changes} == {i: (before[i], after[i]) for i in changed}
