"""What a loss is divided by, so that a batch gives the same gradient in one piece and accumulated from several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelerate import Accelerator
from torch import Tensor

from editable_hf.core.constraints import IGNORE_INDEX


def labels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """The labels of a batch; raises `ValueError` where the collator gave none."""
    if "labels" not in batch:
        raise ValueError(
            f"Expected batches with `labels` to train on, got {sorted(batch)}. Give `train_dataset` that column, or a "
            "`data_collator` that makes it (for language models, leave it out and give the `processing_class`)."
        )
    return batch["labels"]


def count_labels(micro_batches: Sequence[Mapping[str, Tensor]], accelerator: Accelerator) -> Tensor | None:
    """Labels of all micro-batches of one update that are not -100, mean over processes; `None` without batches.

    Counted for every model: the stock Trainer counts only for those whose forward takes the number.
    """
    if not micro_batches:
        return None
    count = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in micro_batches).to(accelerator.device)
    # DDP averages gradients over processes; dividing by the mean count makes the result a mean over all labels.
    return accelerator.reduce(count.float(), reduction="mean") if accelerator.num_processes > 1 else count
