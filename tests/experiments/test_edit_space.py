from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_images import NUM_CLASSES, image_rows, tiny_resnet

from editable_hf import ClassConstraint, edit, edited, gd, rmsprop
from editable_hf.data.image_requests import make_image_requests
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.experiments import edit_space, plots
from editable_hf.experiments.edit_space import EditSpace, describe_edits, embed_edits, explained_variance

NUM_IMAGES = 23


@pytest.fixture(scope="module")
def rows():
    return image_rows(NUM_IMAGES, seed=1)


@pytest.fixture
def evaluator(rows):
    return ErrorDrawdownEvaluator(tiny_resnet(), rows, layers="chain3", batch_size=10)


@pytest.fixture
def requests(rows):
    return list(make_image_requests([row["labels"] for row in rows], NUM_CLASSES, 12, seed=2))


def apply(evaluator, request):
    constraint = ClassConstraint(evaluator.request_inputs(request), request["target"])
    return edit(evaluator.model, constraint, rmsprop(2e-2), "chain3", 4)


def test_descriptors_are_the_divergences_of_the_edited_model(evaluator, requests, rows):
    space = describe_edits(evaluator, requests, rmsprop(2e-2), max_steps=4, progress=None)
    model, images = evaluator.model.eval(), torch.stack([row["pixel_values"] for row in rows])
    reference = torch.distributions.Categorical(logits=model(images).logits.detach().double())
    results = [apply(evaluator, request) for request in requests]
    moved = [index for index, result in enumerate(results) if result.num_steps > 0]
    assert 0 < len(moved) < len(requests), "the test needs edits that move and edits that hold from the start"
    assert space.labels.tolist() == [requests[index]["label"] for index in moved]
    assert space.targets.tolist() == [requests[index]["target"] for index in moved]
    for index, divergences, predictions in zip(moved, space.divergences, space.predictions, strict=True):
        with edited(model, results[index]), torch.no_grad():
            logits = model(images).logits.double()
        expected = torch.distributions.kl_divergence(reference, torch.distributions.Categorical(logits=logits))
        assert torch.allclose(divergences.double(), expected, rtol=1e-3, atol=1e-6)
        assert torch.equal(predictions.long(), logits.argmax(-1))


def test_continues_with_the_groups_that_are_missing(evaluator, requests, tmp_path, monkeypatch):
    evaluator.group_size = 5
    whole = describe_edits(evaluator, requests, rmsprop(2e-2), max_steps=4, folder=tmp_path, progress=None)
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".safetensors"] * 3
    files[1].unlink()
    described = []
    original = edit_space._describe
    monkeypatch.setattr(edit_space, "_describe", lambda *args: described.append(len(args[1])) or original(*args))
    again = describe_edits(evaluator, requests, rmsprop(2e-2), max_steps=4, folder=tmp_path, progress=None)
    assert described == [5]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, whole, strict=True))


def test_edits_that_diverge_are_left_out(evaluator, requests, caplog):
    space = describe_edits(evaluator, requests, gd(1e8), max_steps=6, progress=None)
    assert space.divergences.isfinite().all()
    message = next(text for text in caplog.messages if "diverged" in text)
    left_out, moved = int(message.split()[0]), int(message.split()[2])
    assert left_out > 0 and moved == left_out + len(space.labels)
    assert len(space.predictions) == len(space.targets) == len(space.divergences) == len(space.labels)


def test_edits_that_all_hold_are_refused(evaluator, requests):
    holding = [{**request, "target": int(evaluator.before[request["image_index"]])} for request in requests]
    with pytest.raises(ValueError, match="None of the 12 edits took a step"):
        describe_edits(evaluator, holding, rmsprop(1e-3), progress=None)


def clusters(num_edits=60, num_images=40):
    """Two kinds of edits, which change different images, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.rand(2, num_images, generator=generator)
    of_kind = torch.arange(num_edits) % 2
    return kinds[of_kind] + 0.01 * torch.rand(num_edits, num_images, generator=generator), of_kind


def test_embedding_keeps_kinds_of_edits_apart():
    pytest.importorskip("sklearn", reason="needs the vision extra")
    divergences, kinds = clusters()
    points = embed_edits(divergences, perplexity=10)
    assert points.shape == (60, 2)
    distances = torch.cdist(points, points).fill_diagonal_(torch.inf)
    assert torch.equal(kinds[distances.argmin(1)], kinds)
    assert torch.equal(points, embed_edits(divergences, perplexity=10))


def test_explained_variance_is_that_of_the_exact_decomposition():
    pytest.importorskip("sklearn", reason="needs the vision extra")
    divergences, _ = clusters()
    curve = explained_variance(divergences, 12)
    left, singular, _ = np.linalg.svd(divergences.double().numpy(), full_matrices=False)
    expected = np.cumsum((left * singular).var(0)) / divergences.double().numpy().var(0).sum()
    assert curve.shape == (12,)
    assert np.allclose(curve[:2], expected[:2], atol=1e-6)
    # The randomized decomposition is only nearly exact where singular values are close to each other.
    assert np.allclose(curve, expected[:12], atol=5e-3)
    assert len(explained_variance(divergences[:, :7])) == 6


def test_missing_sklearn_names_the_extra(monkeypatch):
    monkeypatch.setattr("editable_hf.versions.find_spec", lambda name: None)
    for call in (lambda: explained_variance(clusters()[0]), lambda: embed_edits(clusters()[0])):
        with pytest.raises(ImportError, match=r'pip install "editable_hf\[vision\]"'):
            call()


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the plots extra")
    generator = torch.Generator().manual_seed(0)
    classes = [f"class {number}" for number in range(10)]
    labels, targets = (torch.randint(9, (50,), generator=generator) for _ in range(2))  # none of the last class
    space = EditSpace(torch.rand(50, 20), torch.zeros(50, 20, dtype=torch.long), labels, targets)
    points, matrix = torch.randn(50, 2, generator=generator), torch.rand(10, 10, generator=generator).double()
    matrix[9] = torch.nan
    curve = torch.linspace(0.3, 1, 30).double()
    plots.plot_edit_space({"a": (points, space), "b": (points, space)}, classes, tmp_path / "1.png")
    plots.plot_drawdown_by_class({"a": matrix, "b": matrix / 2}, classes, tmp_path / "2.png")
    plots.plot_explained_variance({"a": curve, "b": curve**2}, tmp_path / "3.png")
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 5_000
