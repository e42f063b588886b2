"""Does an edit carry over to similar inputs? (section 4.3.1)"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from editable_hf.core.constraints import ClassConstraint, Constraint
from editable_hf.core.editing import AnyEditor, EditResult, edit, edited
from editable_hf.core.functional import eval_mode
from editable_hf.evaluation.bootstrap import mean_row
from editable_hf.evaluation.edit_evaluator import EditRecord, Request, edit_record
from editable_hf.evaluation.records import measured
from editable_hf.models.extra_block import find_head

Embedding = Callable[[Tensor], Tensor]


def pooled_embedding(model: PreTrainedModel) -> Embedding:
    """The pooled features of a Hugging Face vision model without a head (`AutoModel`), as an embedding."""

    def embed(images: Tensor) -> Tensor:
        with eval_mode(model), torch.no_grad():
            return model(pixel_values=images.to(model.device, model.dtype)).pooler_output.flatten(1)

    return embed


def head_embedding(model: PreTrainedModel) -> Embedding:
    """What enters the last linear layer of an image classifier, as an embedding."""
    head = model.get_submodule(find_head(model))

    def embed(images: Tensor) -> Tensor:
        entered: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        try:
            with eval_mode(model), torch.no_grad():
                model(pixel_values=images.to(model.device, model.dtype))
        finally:
            hook.remove()
        return entered[0].flatten(1)

    return embed


def nearest_images(
    queries: Dataset,
    candidates: Dataset,
    embed: Embedding,
    *,
    batch_size: int = 250,
    progress: str | None = "embedding",
) -> Tensor:
    """The most similar candidate of each query: the one with the largest cosine between their embeddings.

    Args:
        queries: Rows with `pixel_values`.
        candidates: Rows with `pixel_values`.
        embed: From images `(batch, channels, height, width)` to `(batch, dim)`; InceptionV3 in the paper.
        batch_size: Images that are embedded together.
        progress: Title of the progress bar, none if `None`.

    Returns:
        Indices into `candidates`, `(num_queries,)`, int64.
    """

    def directions(dataset: Dataset) -> Tensor:
        loader = DataLoader(dataset, batch_size, generator=torch.Generator())
        bar = tqdm(loader, desc=progress, disable=progress is None, unit="batch")
        return torch.cat([F.normalize(embed(batch["pixel_values"]).float(), dim=1).cpu() for batch in bar])

    of_candidates = directions(candidates)
    return torch.cat([(part @ of_candidates.T).argmax(1) for part in directions(queries).split(batch_size)])


def evaluate_generalization(
    model: PreTrainedModel,
    requests: Iterable[Request],
    edit_images: Dataset,
    neighbor_images: Dataset,
    neighbors: Sequence[int] | Tensor,
    editor: AnyEditor,
    layers: str | Iterable[str],
    *,
    num_augmentations: int = 5,
    max_steps: int = 10,
    seed: int = 0,
    path: Path | None = None,
    progress: str | None = "generalization",
) -> list[EditRecord]:
    """Edits several augmentations of an image at once and classifies augmentations of its nearest neighbor.

    Args:
        model: The model to edit; it is left as it was.
        requests: Rows with `id`, `image_index`, `target`.
        edit_images: What `image_index` refers to; rows with `pixel_values`, augmented anew at each access.
        neighbor_images: Where the neighbors are; likewise augmented.
        neighbors: Index of the neighbor of each image of `edit_images`, see [`nearest_images`].
        editor: How to edit.
        layers: What an edit may move.
        num_augmentations: Of each image, 5 in the paper.
        max_steps: k in Eq. 1; the constraint is that all augmentations get the class.
        seed: Decides the augmentations, which do not depend on the other requests.
        path: See [`measured`].
        progress: Title of the progress bar, none if `None`.

    Several processes share the edits; all of them must call this, and get all records.

    Returns:
        One record for each request: `id`, `image_index`, `target`, `neighbor`, `success`, `num_steps`, `loss_before`,
        `loss_after`, `before` and `after` (fraction of the neighbor's augmentations with the wanted class),
        `edit_seconds`.
    """
    requests = list(requests)

    def measure(number: int) -> EditRecord:
        request = requests[number]
        image = request["image_index"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed + number)  # `torch.manual_seed` would seed GPUs too
            own = _augmentations(edit_images, image, num_augmentations, model)
            other = _augmentations(neighbor_images, int(neighbors[image]), num_augmentations, model)
        change = partial(edit, model, editor=editor, layers=layers, max_steps=max_steps)
        return {**_measure(model, request, own, other, change), "neighbor": int(neighbors[image])}

    return measured(
        range(len(requests)), 1, lambda numbers: [measure(number) for number in numbers], path=path, progress=progress
    )


def _measure(
    model: PreTrainedModel, request: Request, own: Tensor, other: Tensor, change: Callable[[Constraint], EditResult]
) -> EditRecord:
    """An edit of the images `own`, and the share of the images `other` that have its class before and after it."""
    target = request["target"]
    start = time.perf_counter()
    result = change(ClassConstraint({"pixel_values": own}, target))
    seconds = time.perf_counter() - start
    before = _share(model, other, target)
    with edited(model, result):
        after = _share(model, other, target)
    record = edit_record(request, ("id", "image_index", "target"), result, seconds)
    return {**record, "before": before, "after": after}


def summarize_generalization(name: str, records: Sequence[EditRecord]) -> dict[str, Any]:
    """Means over the edits of [`evaluate_generalization`], with 95% bootstrap intervals."""
    keys = ("success", "num_steps", "before", "after", "edit_seconds")
    return mean_row(name, {key: [record[key] for record in records] for key in keys})


def _augmentations(dataset: Dataset, index: int, count: int, model: PreTrainedModel) -> Tensor:
    images = torch.stack([dataset[index]["pixel_values"] for _ in range(count)])
    return images.to(model.device, model.dtype)


def _share(model: PreTrainedModel, images: Tensor, target: int) -> float:
    with eval_mode(model), torch.no_grad():
        return (model(pixel_values=images).logits.argmax(-1) == target).double().mean().item()
