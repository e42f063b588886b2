"""Drawdown of the error rate: what edits of an image classifier do to all other predictions (sections 4.1 and 4.3)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.editing import AnyEditor, edit, edited
from editable_hf.core.editors import Params
from editable_hf.core.functional import eval_mode
from editable_hf.core.replay import Recording, record
from editable_hf.core.selection import select_parameters
from editable_hf.evaluation.edit_evaluator import EditEvaluator, EditRecord, Request, edit_record, mean_of_moved
from editable_hf.evaluation.two_way import Changes, resampled_means

# What the edits of a group share is then small beside them, also for the extra block; and a kill loses no more.
_LARGEST_GROUP = 100


class ErrorDrawdownEvaluator(EditEvaluator):
    """Measures edits of one image classifier over one test set.

    What the model computes before its first edited layer is the same after every edit: it runs once for a group of
    edits, a batch of images at a time, and several edits of a group run from there together (`vmap`). Exact.

    Records also have `before` and `after` (the class predicted for the request's image), `error_rate` of the edited
    model (fraction in [0, 1]) and `changed` (index and new class of each test image whose prediction changed).

    Args:
        model: The model to edit; it is left as it was.
        dataset: The test set, rows with `pixel_values` `(channels, height, width)` and `labels`.
        edit_images: What `image_index` of a request refers to, rows with `pixel_values`; `dataset` if not given.
        layers: What an edit may move.
        batch_size: Images that are classified together.
        gigabytes: Memory for the parameters of the edits for which the part that they share runs once, at most 100.
        edits_together: Edits that run as one batch, by default 8 on a GPU. On a CPU it is 1: a batch of convolutions
            with different weights is not faster there.
        num_workers: Processes that load images.
    """

    request_keys = ("id", "image_index", "label", "target")

    def __init__(
        self,
        model: PreTrainedModel,
        dataset: Dataset,
        edit_images: Dataset | None = None,
        *,
        layers: str | Iterable[str] = "chain3",
        batch_size: int = 250,
        gigabytes: float = 4.0,
        edits_together: int | None = None,
        num_workers: int = 0,
    ):
        if edits_together is None:
            edits_together = 1 if model.device.type == "cpu" else 8
        if not gigabytes > 0 or edits_together < 1:
            raise ValueError(
                f"`gigabytes` must be above 0 and `edits_together` at least 1, got {gigabytes} and {edits_together}."
            )
        self.model, self.edit_images = model, dataset if edit_images is None else edit_images
        selected = select_parameters(model, layers)
        self.layers, self._edits_together = list(selected), edits_together
        num_bytes = 2 * sum(param.nbytes for param in selected.values())  # by themselves, and stacked
        self.group_size = max(1, min(_LARGEST_GROUP, int(1e9 * gigabytes / num_bytes)))
        # A generator of its own: the workers' seed would be drawn from the global one.
        self.loader = DataLoader(dataset, batch_size, num_workers=num_workers, generator=torch.Generator())
        batches = [(logits[0].argmax(-1).cpu(), labels) for logits, labels in self.logits([], "unedited model")]
        self.before, self.labels = (torch.cat(column) for column in zip(*batches, strict=True))
        self.error_rate = self.error_rate_of(self.before)
        self.num_images = len(self.labels)

    def predict(self, edits: Sequence[Params], progress: str | None = None) -> Tensor:
        """Predicted classes of the unedited model and after each edit, `(1 + num_edits, num_images)`."""
        return torch.cat([logits.argmax(-1).cpu() for logits, _ in self.logits(edits, progress)], dim=1)

    def logits(self, edits: Sequence[Params], progress: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each batch of the test set the logits of the unedited model and after each edit, on the model's device,
        `(1 + num_edits, batch, num_classes)`, and the labels `(batch,)`."""
        own = dict(self.model.named_parameters())
        watched = [own[name] for name in self.layers]
        parts = [edits[start : start + self._edits_together] for start in range(0, len(edits), self._edits_together)]
        stacks = [_stack(part, self.layers) for part in parts]
        for batch in tqdm(self.loader, desc=progress, disable=progress is None, unit="batch", leave=False):
            with eval_mode(self.model), torch.no_grad():
                images = batch["pixel_values"].to(
                    self.model.device, self.model.dtype, memory_format=torch.channels_last
                )
                with record(self.model, watched) as recording:
                    logits = [self.model(pixel_values=images).logits.unsqueeze(0)]
                for stack in stacks:
                    logits.append(_replay_all(recording, stack))
            yield torch.cat(logits), batch["labels"]

    def error_rate_of(self, predictions: Tensor) -> float:
        """Fraction of wrong ones among the predictions for the test set, `(num_images,)`."""
        return (predictions != self.labels).double().mean().item()

    def _measure(
        self, requests: Sequence[Request], editor: AnyEditor, max_steps: int, progress: str | None
    ) -> list[EditRecord]:
        results, records = [], []
        for request in requests:
            inputs = self.request_inputs(request)
            start = time.perf_counter()
            result = edit(self.model, ClassConstraint(inputs, request["target"]), editor, self.layers, max_steps)
            seconds = time.perf_counter() - start
            before = int(self.classify(inputs["pixel_values"]))
            with edited(self.model, result):
                after = int(self.classify(inputs["pixel_values"]))
            results.append(result)
            record = edit_record(request, self.request_keys, result, seconds)
            records.append({**record, "before": before, "after": after})
        moved = [result.params for result in results if result.num_steps > 0]
        outputs = iter(self.predict(moved, progress)[1:] if moved else ())
        for one, result in zip(records, results, strict=True):
            one |= self._changes(next(outputs) if result.num_steps > 0 else self.before)
        return records

    def request_inputs(self, request: Request) -> dict[str, Tensor]:
        """The model's inputs for the image of a request."""
        images = self.edit_images[request["image_index"]]["pixel_values"].unsqueeze(0)
        return {"pixel_values": images.to(self.model.device, self.model.dtype)}

    def classify(self, images: Tensor) -> Tensor:
        """Classes that the model as it stands predicts, `(batch,)`, on the CPU."""
        with eval_mode(self.model), torch.no_grad():
            return self.model(pixel_values=images).logits.argmax(-1).cpu()

    def _changes(self, predictions: Tensor) -> dict[str, Any]:
        changed = (predictions != self.before).nonzero().squeeze(1).tolist()
        return {
            "error_rate": self.error_rate_of(predictions),
            "num_changed": len(changed),
            "changed": [[index, int(predictions[index])] for index in changed],
        }

    def summarize(self, name: str, records: Sequence[EditRecord], **extra: Any) -> dict[str, Any]:
        """One row of Tables 1 to 5 from the records of [`evaluate`], with 95% bootstrap intervals.

        Those of drawdowns are over edits and test images together, all others over the edits.

        Args:
            name: Name of the row.
            records: What `evaluate` returned.
            extra: Further entries of the row.

        Returns:
            `error_rate` of the unedited model, `drawdown` (mean absolute difference to it, a fraction),
            `drawdown_signed` (mean of after - before), `drawdown_moved` (mean over the edits that took a step),
            `success_rate` and `verified_rate` (the class is predicted afterwards; ties apart the same),
            `num_steps`, `already_satisfied` (fraction with 0 steps), `num_edits`, `num_images`, `outputs_changed`
            (mean fraction of test images), `edit_seconds`; intervals under `intervals`.
        """
        scores = {"error_rate": self.error_rate, "num_images": self.num_images}
        moved = mean_of_moved(self._columns(records)["drawdown"], records)
        return self._summary(name, records, **scores, drawdown_moved=moved, **extra)

    def resampled(self, records: Sequence[EditRecord]) -> dict[str, np.ndarray]:
        """Mean drawdowns for resampled edits and test images, see [`resampled_means`], by key of the row."""
        wrong, labels = (self.before != self.labels).numpy().astype(np.int64)[:, None], self.labels.numpy()
        edits = []
        for changed in (each["changed"] for each in records):
            indices, classes = np.array(changed, dtype=np.int64).reshape(-1, 2).T
            edits.append(Changes(indices, (classes != labels[indices])[:, None] - wrong[indices]))

        def error_rate(sums: np.ndarray) -> np.ndarray:
            return sums[:, 0] / len(wrong)

        return {
            "drawdown": resampled_means(wrong, edits, error_rate),
            "drawdown_signed": resampled_means(wrong, edits, error_rate, np.negative),  # after - before
        }

    def _columns(self, records: Sequence[EditRecord]) -> dict[str, list[float]]:
        differences = [record["error_rate"] - self.error_rate for record in records]
        return {
            "drawdown": [abs(value) for value in differences],
            "drawdown_signed": differences,
            "verified_rate": [record["after"] == record["target"] for record in records],
            "outputs_changed": [record["num_changed"] / self.num_images for record in records],
        }


def _stack(edits: Sequence[Params], names: Sequence[str]) -> Params:
    return {name: torch.stack([params[name] for params in edits]) for name in names}


def _replay_all(recording: Recording, stack: Params) -> Tensor:
    """Logits after each of some edits, `(num_edits, batch, num_classes)`."""
    # `edited_batch` would run what edits share for each of them: with 4 edits of chain3, chain4 or all layers of a
    # ResNet-18 and 64 images of CIFAR's size it had 0.76, 0.36 and 0.71 of the speed of replays one by one (1 core).
    count = len(next(iter(stack.values())))
    if count > 1:
        with suppress(RuntimeError):  # of a model that adds in place to what all edits share; any other comes again
            return torch.func.vmap(lambda params: recording.replay(params).logits)(stack)
    edits = ({name: values[index] for name, values in stack.items()} for index in range(count))
    return torch.stack([recording.replay(params).logits for params in edits])
