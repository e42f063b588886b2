"""Classifies a regression set before and after a patch, and collects what changed."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from editable_hf.evaluation.error_evaluator import ErrorDrawdownEvaluator
from editable_hf.review.review import ERROR_RATE, IMAGE, Change, Review, name_of, own_params, sorted_changes

_PICTURE_SIDE = 96  # pixels
_MAX_PICTURES = 1000  # a page of more would be tens of megabytes


def review_images(
    model: PreTrainedModel,
    params: Mapping[str, Tensor],
    dataset: Dataset,
    class_names: Sequence[str] | None = None,
    *,
    pictures: Sequence[Any] | None = None,
    edited_indices: Collection[int] = (),
    batch_size: int = 250,
    patch: str = "edit",
    base_model: str | None = None,
    regression_set: str | None = None,
) -> Review:
    """Classifies images before and after a patch, and compares.

    Args:
        model: The unedited model; it is left as it was.
        params: The edited parameters by qualified name, e.g. `EditResult.params`.
        dataset: The regression set, rows with `pixel_values` and `labels`.
        class_names: By label, by default those of the model's configuration.
        pictures: The images of `dataset` to be shown, as PIL images or as `datasets` stores them; none if not given.
            The review holds small copies of at most 1,000.
        edited_indices: The images of `dataset` that the patch is for.
        batch_size: Images that are classified together.
        patch: What to call the patch.
        base_model: What to call the model, by default its own name or path.
        regression_set: What to call the images.

    Raises:
        ValueError: If there are no images, not as many pictures, or parameters that the model does not have.
    """
    num_pictures = len(dataset) if pictures is None else len(pictures)
    if len(dataset) == 0 or num_pictures != len(dataset):
        raise ValueError(
            f"Expected at least one image, and as many pictures or none, but got {len(dataset):,} images and "
            f"{num_pictures:,} pictures; check the regression set."
        )
    params, edited_indices = own_params(model, params), set(edited_indices)
    evaluator = ErrorDrawdownEvaluator(model, dataset, layers=list(params), batch_size=batch_size)
    before, after = evaluator.predict([params])
    names = model.config.id2label if class_names is None else class_names
    changes = _changed_classes(evaluator.labels, before, after, names, edited_indices)
    return Review(
        IMAGE,
        patch,
        base_model or name_of(model),
        regression_set or f"{len(dataset):,} images",
        ERROR_RATE,
        "top 1",
        before=evaluator.error_rate_of(before),
        after=evaluator.error_rate_of(after),
        num_examples=len(dataset),
        changes=changes if pictures is None else _with_pictures(changes, pictures),
    )


def _changed_classes(
    labels: Tensor, before: Tensor, after: Tensor, names: Sequence[str] | Mapping[int, str], edited: Collection[int]
) -> list[Change]:
    triples = zip(labels.tolist(), before.tolist(), after.tolist(), strict=True)
    return sorted_changes(
        [
            Change(
                index=index,
                source=f"image {index}",
                reference=names[label],
                before=names[old],
                after=names[new],
                edited=index in edited,
                distance=1.0,
                gain=float((new == label) - (old == label)),
            )
            for index, (label, old, new) in enumerate(triples)
            if old != new
        ]
    )


def _with_pictures(changes: Sequence[Change], pictures: Sequence[Any]) -> list[Change]:
    shown = [replace(change, picture=picture_url(pictures[change.index])) for change in changes[:_MAX_PICTURES]]
    return [*shown, *changes[_MAX_PICTURES:]]


def picture_url(picture: Any) -> str:
    """A small copy of an image as a `data:` URL, PNG.

    Args:
        picture: A PIL image, or `bytes` and `path` as `datasets` stores them.
    """
    from editable_hf.data.image_transforms import decode_image  # Pillow: not installed for translation only

    image = decode_image(picture).copy()
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
