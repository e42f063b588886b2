"""What each edit does to every test image: by class, and in few dimensions (section 4.2, Figure 2)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.editing import AnyEditor, edit
from editable_hf.data.atomic import write_atomically
from editable_hf.evaluation.edit_evaluator import Request
from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.evaluation.records import in_groups
from editable_hf.launch import launched_processes
from editable_hf.versions import require_extra

logger = logging.getLogger(__name__)


class EditSpace(NamedTuple):
    """Edits of one model that took a step, each described by what it did to the test set.

    Attributes:
        divergences: `KL(p(y | x, theta) || p(y | x, theta_edited))` in nats for every test image x,
            `(num_edits, num_images)`, float32: "a 10,000-dimensional model descriptor".
        predictions: Classes predicted after the edit, `(num_edits, num_images)`, int16.
        labels: Classes of the edited images, `(num_edits,)`.
        targets: Classes that they were to be given, `(num_edits,)`.
    """

    divergences: Tensor
    predictions: Tensor
    labels: Tensor
    targets: Tensor


def describe_edits(
    evaluator: ErrorDrawdownEvaluator,
    requests: Iterable[Request],
    editor: AnyEditor,
    *,
    max_steps: int = 10,
    folder: Path | None = None,
    progress: str | None = "edits",
) -> EditSpace:
    """Applies each request by itself and compares all predictions with the unedited model's.

    Edits that hold from the start are left out: they do nothing. So are those that diverge to logits that are not
    finite, with a warning that counts them. Several processes share the work, as in `evaluator.evaluate`.

    Args:
        evaluator: Holds the model and the test set.
        requests: Rows with `image_index`, `label` and `target`.
        editor: How to edit.
        max_steps: k in Eq. 1.
        folder: Gets one file for every group of edits that is done; groups whose file is there are not repeated. A
            folder for the same model, editor and requests only.
        progress: Title of the progress bar, none if `None`.

    Raises:
        ValueError: If no edit takes a step.
    """
    requests, size = list(requests), evaluator.group_size
    title = progress if launched_processes().is_main_process else None

    def describe(start: int) -> dict[str, Tensor]:
        group = requests[start : start + size]
        path = None if folder is None else folder / f"edits-{start:06d}-{start + len(group):06d}.safetensors"
        if path is not None and path.exists():
            return load_file(path)
        part = _describe(evaluator, group, editor, max_steps, None if title is None else "batches")
        if path is not None:
            write_atomically(path, save(part))
        return part

    parts: list[dict[str, Tensor]] = []
    with tqdm(total=len(requests), desc=title, disable=title is None, unit="edit") as bar:
        # One start a process at a time, so that the files are the same ones for any number of processes.
        for new in in_groups(range(0, len(requests), size), 1, lambda starts: [describe(start) for start in starts]):
            parts += new
            bar.update(min(size * len(new), len(requests) - bar.n))
    if not any(len(part["labels"]) for part in parts):
        raise ValueError(
            f"None of the {len(requests)} edits took a step: the model gives every image its target already."
        )
    whole = {key: torch.cat([part[key] for part in parts]) for key in EditSpace._fields}
    finite = whole["divergences"].isfinite().all(1)
    if not finite.all():
        logger.warning("%d of %d edits diverged: their logits are not finite.", (~finite).sum(), len(finite))
    return EditSpace(**{key: values[finite] for key, values in whole.items()})


def _describe(
    evaluator: ErrorDrawdownEvaluator,
    requests: Sequence[Request],
    editor: AnyEditor,
    max_steps: int,
    progress: str | None,
) -> dict[str, Tensor]:
    constraints = [ClassConstraint(evaluator.request_inputs(request), request["target"]) for request in requests]
    results = [edit(evaluator.model, each, editor, evaluator.layers, max_steps) for each in constraints]
    moved = [index for index, result in enumerate(results) if result.num_steps > 0]
    divergences, predictions = [], []
    for logits, _ in evaluator.logits([results[index].params for index in moved], progress):
        log_p = F.log_softmax(logits.double(), -1)
        divergences.append((log_p[0].exp() * (log_p[0] - log_p[1:])).sum(-1).float().cpu())
        predictions.append(logits[1:].argmax(-1).short().cpu())  # as many as the divergences, on disk too
    return {
        "divergences": torch.cat(divergences, dim=1),
        "predictions": torch.cat(predictions, dim=1),
        "labels": torch.tensor([requests[index]["label"] for index in moved], dtype=torch.long),
        "targets": torch.tensor([requests[index]["target"] for index in moved], dtype=torch.long),
    }


def embed_edits(divergences: Tensor, *, perplexity: float = 30.0, seed: int = 0) -> Tensor:
    """t-SNE of the descriptors in two dimensions, `(num_edits, 2)`, float32.

    Args:
        divergences: `(num_edits, num_images)`.
        perplexity: Of t-SNE; below the number of edits.
        seed: Same.

    Raises:
        ImportError: Without scikit-learn, naming the extra.
    """
    require_extra("sklearn", "vision")
    from sklearn.manifold import TSNE

    tsne = TSNE(n_components=2, init="pca", perplexity=perplexity, random_state=seed)
    return torch.from_numpy(tsne.fit_transform(divergences.numpy())).float()


def explained_variance(divergences: Tensor, num_components: int = 100, *, seed: int = 0) -> Tensor:
    """Share of the descriptors' variance that the first 1, 2, ... components of a truncated SVD explain.

    Args:
        divergences: `(num_edits, num_images)`.
        num_components: As many as the matrix has at most.
        seed: Of the randomized decomposition.

    Returns:
        `(num_components,)`, float64, rising towards 1.

    Raises:
        ImportError: Without scikit-learn, naming the extra.
    """
    require_extra("sklearn", "vision")
    from sklearn.decomposition import TruncatedSVD

    count = min(num_components, *(size - 1 for size in divergences.shape))
    svd = TruncatedSVD(count, random_state=seed).fit(divergences.double().numpy())
    return torch.from_numpy(svd.explained_variance_ratio_).cumsum(0)


def drawdown_by_class(
    predictions: Tensor, before: Tensor, labels: Tensor, edited_classes: Tensor, num_classes: int
) -> Tensor:
    """Mean absolute difference of each class's error rate, by the class of the image that was edited.

    Args:
        predictions: Classes predicted for the test set after each edit, `(num_edits, num_images)`.
        before: Those of the unedited model, `(num_images,)`.
        labels: The right ones, `(num_images,)`.
        edited_classes: Class of each edit's image, `(num_edits,)`.
        num_classes: Number of classes.

    Returns:
        `(num_classes, num_classes)`, fractions, float64: row i, column j is the drawdown on test images of class j
        when an image of class i is edited. NaN in the row of a class without an edit, and in the column of one without
        a test image.
    """
    of_class = F.one_hot(labels, num_classes).double()  # (num_images, num_classes)
    sizes = of_class.sum(0)
    error_rates = (predictions != labels).double() @ of_class / sizes
    drawdowns = (error_rates - (before != labels).double() @ of_class / sizes).abs()  # (num_edits, num_classes)
    edits = F.one_hot(edited_classes, num_classes).double()  # (num_edits, num_classes)
    return edits.T @ drawdowns / edits.sum(0).unsqueeze(1)


def own_class_ratio(drawdowns: Tensor) -> float:
    """Mean drawdown on the edited image's own class over the mean drawdown on the other classes.

    The paper finds that "edits of baseline model cause most drawdown on samples that belong to the same class as the
    edited input": a number well above 1.

    Args:
        drawdowns: Of [`drawdown_by_class`].
    """
    own = torch.eye(len(drawdowns), dtype=torch.bool)
    return (drawdowns[own].nanmean() / drawdowns[~own].nanmean()).item()
