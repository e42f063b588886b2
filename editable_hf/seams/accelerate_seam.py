"""How accelerate is built inside. Imports it only where it is used, so that `core` can do without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader


@contextmanager
def without_autocast_wrapper(model: nn.Module) -> Iterator[None]:
    """Takes the autocast away that accelerate puts around the forward of a model it prepares for mixed precision.

    Relies on the attribute `_original_forward` that `accelerate.Accelerator.prepare_model` leaves on such a model
    beside the `forward` it replaces (accelerate 1.12 to 1.15). What is public, `extract_model_from_parallel`, would
    take the wrapper away for good.
    """
    wrapped = vars(model).pop("forward", None) if "_original_forward" in vars(model) else None
    try:
        yield
    finally:
        if wrapped is not None:
            vars(model)["forward"] = wrapped


def moved_to_device(loader: DataLoader, device: torch.device) -> DataLoader:
    """The loader with its batches moved to `device`, for one whose sampler gives each process its own already.

    Relies on `accelerate.data_loader.prepare_data_loader` (accelerate 1.12 to 1.15); `Accelerator.prepare` would
    divide the batches among the processes once more.
    """
    from accelerate.data_loader import prepare_data_loader

    return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)
