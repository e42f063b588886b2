"""The gradient of Eq. 2 for image classifiers, against whole models called one by one in plain torch."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
from tiny_images import NUM_CLASSES, changed_names, image_rows, snapshot, tiny_extra, tiny_resnet
from torch.func import functional_call

from editable_hf import EditableImageTrainer, EditableImageTrainingArguments
from editable_hf.core import constraints

STEPS, C_EDIT, C_LOC = 4, 0.7, 2.0
# by what an edit may move: how to build the model, the modules from the first edited one on, alpha
MODELS = {
    "chain3": (tiny_resnet, ("layer3", "linear"), 1e-4),
    "extra": (tiny_extra, ("backbone.linear",), 2e-3),
}


def make_trainer(folder, model, layers, requests, **options):
    usual = {
        "edit_layers": [layers],
        "edit_learning_rate": MODELS[layers][2],
        "edit_max_steps": STEPS,
        "edit_coef": C_EDIT,
        "locality_coef": C_LOC,
        "edits_per_step": len(requests),
        "learn_edit_learning_rate": True,
        "report_to": "none",
        "use_cpu": True,
    }
    args = EditableImageTrainingArguments(str(folder), **{**usual, **options})
    trainer = EditableImageTrainer(model, args, edit_dataset=requests)
    trainer.model.editor.double()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def edit_requests(model):
    """An edit that reaches its goal in time and one that does not: the second and the last of the model's classes."""
    rows = image_rows(2, seed=5)
    images = torch.stack([row["pixel_values"] for row in rows])
    order = copy.deepcopy(model).eval()(images).logits.argsort(1, descending=True)
    return [
        {"pixel_values": images[0], "target": int(order[0, 1])},
        {"pixel_values": images[1], "target": int(order[1, NUM_CLASSES - 1])},
    ]


def batch_of(rows):
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }


def forward(model, params, buffers, images, train=lambda name: False):
    """The whole model with these parameters; `train` says which modules are in train mode and may change `buffers`."""
    for name, module in model.named_modules():
        module.training = train(name)
    return functional_call(model, {**params, **buffers}, (), {"pixel_values": images}).logits


def smoothed_cross_entropy(logits, labels, smoothing):
    total = 0.0
    for row, label in zip(logits, labels.tolist(), strict=True):
        log_p = reference.log_softmax(row)
        total = total - (1 - smoothing) * log_p[label] - smoothing * log_p.sum() / NUM_CLASSES
    return total / len(labels)


def plain_objective(model, names, batch, requests, editor, *, suffix, reuse, distill, smoothing=0.0):
    """The terms of Eq. 2 with leaves of their own: parameters, the two values of the editor."""
    params = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    start = {name: value.clone() for name, value in model.named_buffers()}
    buffers = {name: value.clone() for name, value in start.items()}
    log_alpha, beta_logit = (value.detach().clone().requires_grad_() for value in editor)

    def call(own, images, train=lambda name: False):
        return forward(model, own, {name: value.clone() for name, value in buffers.items()}, images, train)

    images, labels = batch["pixel_values"], batch["labels"]
    logits = forward(model, params, buffers, images, lambda name: True)  # moves the running statistics
    if distill:
        base = reference.locality(forward(model, params, start, images).detach(), logits)
    else:
        base = smoothed_cross_entropy(logits, labels, smoothing)

    def with_values(theta):
        parts = theta.split([params[name].numel() for name in names])
        return {**params, **{n: part.view_as(params[n]) for n, part in zip(names, parts, strict=True)}}

    def before_edit(name):
        return reuse and not name.startswith(suffix)

    edits, local, num_steps = [], [], []
    unedited = call(params, images, before_edit).detach()
    for request in requests:
        theta, losses = reference.unrolled_edit(
            lambda theta, r=request: reference.class_constraint(
                call(with_values(theta), r["pixel_values"].unsqueeze(0))[0], r["target"]
            ),
            torch.cat([params[name].flatten() for name in names]),
            lambda grads: reference.rmsprop(grads, log_alpha.exp(), beta_logit.sigmoid()),
            STEPS,
        )
        edits.append(losses[-1].clamp(min=0))
        local.append(reference.locality(unedited, call(with_values(theta), images, before_edit)))
        num_steps.append(len(losses) - 1)
    terms = base, torch.stack(edits).mean(), torch.stack(local).mean()
    leaves = {**params, "editor.learning_rate": log_alpha, "editor.beta": beta_logit}
    return terms, leaves, buffers, num_steps


@pytest.mark.parametrize("layers", MODELS)
@pytest.mark.parametrize("base_loss", ["task", "distillation"])
@pytest.mark.parametrize(
    ("replay", "reuse", "together"),
    [(True, True, True), (True, True, False), (True, False, False), (False, False, False)],
)
def test_gradient_of_the_objective(tmp_path, monkeypatch, layers, base_loss, replay, reuse, together):
    if together:
        monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", {"cpu"})
    build, suffix, _ = MODELS[layers]
    model = build()
    requests, batch = edit_requests(model), batch_of(image_rows(6))
    plain = copy.deepcopy(model)
    trainer = make_trainer(
        tmp_path,
        model,
        layers,
        requests,
        base_loss=base_loss,
        label_smoothing_factor=0.1,
        replay=replay,
        reuse_base_forward=reuse,
    )
    trainer._draw = lambda: requests
    total = trainer.compute_loss(model.train(), batch)
    total.backward()

    editor = [model.editor.learning_rate, model.editor.beta]
    options = {"suffix": suffix, "reuse": reuse, "distill": base_loss == "distillation", "smoothing": 0.1}
    terms, leaves, buffers, num_steps = plain_objective(
        plain, trainer.edit_parameters, batch, requests, editor, **options
    )
    expected = terms[0] + C_EDIT * terms[1] + C_LOC * terms[2]
    expected.backward()
    assert num_steps[0] < num_steps[1] == STEPS and all(term > 1e-3 for term in terms)
    assert total.item() == pytest.approx(expected.item(), rel=1e-12)
    sums = trainer._terms.sums
    for name, term in zip(("base_loss", "edit_loss", "locality_loss"), terms, strict=True):
        assert sums[name] == pytest.approx(term.item(), rel=1e-10)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert set(ours) == set(leaves)
    errors = {name: (ours[name] - leaf.grad).abs().max().item() for name, leaf in leaves.items()}
    print(f"largest error of a gradient: {max(errors.values()):.1e} in {max(errors, key=errors.get)}")
    assert max(errors.values()) < 1e-9
    assert all(leaf.grad.abs().max() > 1e-4 for leaf in leaves.values())
    # The base forward moved the statistics once; nothing else did.
    torch.testing.assert_close(dict(model.named_buffers()), buffers, rtol=0, atol=1e-12)


def test_reused_activations_are_another_objective(tmp_path):
    # Otherwise the test above could not tell one from the other.
    model, (_, suffix, alpha) = tiny_resnet(), MODELS["chain3"]
    names = [name for name, _ in model.named_parameters() if name.startswith("layer3")]
    editor = [torch.tensor(alpha).log().double(), torch.tensor(0.0).double()]
    local = [
        plain_objective(
            copy.deepcopy(model),
            names,
            batch_of(image_rows(6)),
            edit_requests(model),
            editor,
            suffix=suffix,
            reuse=reuse,
            distill=False,
        )[0][2].item()
        for reuse in (True, False)
    ]
    assert abs(local[0] - local[1]) > 0.01 * local[1]


@pytest.mark.parametrize("layers", MODELS)
def test_gradient_is_the_slope(tmp_path, layers):
    """By finite differences along a random direction; without locality, whose reference takes no gradient."""
    model = MODELS[layers][0]()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # nor do running statistics, but their values depend on the weights
    requests, batch = edit_requests(model)[1:], batch_of(image_rows(6))
    trainer = make_trainer(tmp_path, model, layers, requests, locality_coef=0.0)
    trainer._draw = lambda: requests
    start = snapshot(model)
    generator = torch.Generator().manual_seed(1)
    direction = {n: torch.randn(p.shape, generator=generator).double() for n, p in model.named_parameters()}

    def loss_at(step):
        with torch.no_grad():
            for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
                tensor.copy_(start[name] + step * direction[name] if name in direction else start[name])
        return trainer.compute_loss(model.train(), batch)

    loss_at(0.0).backward()
    slope = sum((direction[name] * p.grad).sum() for name, p in model.named_parameters()).item()
    step = 1e-7
    difference = (loss_at(step).item() - loss_at(-step).item()) / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("layers", MODELS)
def test_edit_terms_change_nothing_in_the_model(tmp_path, layers):
    model = MODELS[layers][0]()
    requests, batch = edit_requests(model), batch_of(image_rows(6))
    trainer = make_trainer(tmp_path, model, layers, requests)
    locality = trainer.locality_batch({"pixel_values": batch["pixel_values"]}, batch["labels"])
    model.train()
    with locality.recorded():
        base = model(pixel_values=batch["pixel_values"]).logits.sum()
    before, modes = snapshot(model), [module.training for module in model.modules()]
    trainer._draw = lambda: [*requests, {"pixel_values": requests[0]["pixel_values"], "rank": 3}]
    total = trainer.add_edit_terms(base, locality)
    assert total != base and changed_names(model, before) == []
    assert [module.training for module in model.modules()] == modes
