"""Elastic Weight Consolidation: edits that pay for moving what the training data depends on (section 4.1, Table 3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from editable_hf.core.editors import Editor, Params, ScalarLike, apply_updates
from editable_hf.core.flat import FlatLayout
from editable_hf.core.functional import eval_mode
from editable_hf.core.selection import select_parameters

LABELS = ("true", "sampled")

# Weights worth trying with a Fisher information of mean 1. On CIFAR-10 (ResNet-20, chain 3, tuned learning rates) the
# penalty's gradient after a step is a hundredth of that of l_e at weight 1 with RMSProp, and equals it near 100;
# at 1000 two edits in three fail. GD diverges from about 10 on, in the coordinates of the largest information.
EWC_WEIGHTS = (1e-2, 1e3)


class EWCState(NamedTuple):
    """`editor`: state of the editor that makes the steps; `displacement`: `theta - theta_0`, sum of its updates."""

    editor: Any
    displacement: Params


def ewc(editor: Editor, fisher: Params, weight: ScalarLike) -> Editor:
    """Elastic Weight Consolidation (Kirkpatrick et al., 2017) around any gradient editor.

    The editor descends `l_e(theta) + weight * sum_i F_i (theta_i - theta_0i)^2`. An edit still ends when `l_e <= 0`.
    The first step is the editor's own, because the penalty has no gradient at theta_0.

    Args:
        editor: Makes the steps; it is given the gradient of both terms.
        fisher: `F` for every edited parameter, same names, shapes and device; see [`diagonal_fisher`].
        weight: Of the penalty; Kirkpatrick et al. write `lambda / 2`. With 0 the editor is the plain one.

    Raises:
        ValueError: At the start of an edit, if `fisher` does not fit the edited parameters.

    Example:
        >>> fisher = normalize_fisher(diagonal_fisher(model, train_set, "chain3"))  # doctest: +SKIP
        >>> edit(model, constraint, ewc(rmsprop(1e-3), fisher, weight=10.0), "chain3")  # doctest: +SKIP
    """

    def init(params: Params) -> EWCState:
        _check_shapes(fisher, {name: param.shape for name, param in params.items()})
        return EWCState(editor.init(params), {name: torch.zeros_like(param) for name, param in params.items()})

    def update(grads: Params, state: EWCState) -> tuple[Params, EWCState]:
        moved = state.displacement
        grads = {name: g + 2 * weight * fisher[name] * moved[name] for name, g in grads.items()}
        updates, inner = editor.update(grads, state.editor)
        return updates, EWCState(inner, apply_updates(moved, updates))

    def flatten(layout: FlatLayout) -> Editor:
        _check_shapes(fisher, layout.shapes)
        return ewc(editor.flatten(layout), layout.pack(fisher), weight)

    return Editor(init, update, flatten if editor.flatten is not None else None)


def _check_shapes(fisher: Params, shapes: Mapping[str, torch.Size]) -> None:
    for name, shape in shapes.items():
        if name not in fisher or fisher[name].shape != shape:
            found = f"has shape {tuple(fisher[name].shape)}" if name in fisher else "is missing"
            raise ValueError(
                f"The Fisher information of {name!r}, of shape {tuple(shape)}, {found}. Estimate it for the layers "
                "that are edited, on this model: `diagonal_fisher(model, dataset, layers)`."
            )


def diagonal_fisher(
    model: PreTrainedModel,
    dataset: Dataset,
    layers: str | Iterable[str],
    *,
    labels: str = "true",
    num_examples: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    progress: str | None = "Fisher information",
) -> Params:
    """Diagonal of the Fisher information, `F_i = mean_x (d log p(y | x) / d theta_i)^2`, in eval mode.

    The squares are those of single examples' gradients. With the labels of the data this is called the *empirical
    Fisher*; with labels drawn from the model's own predictions, one for each example, it is a Monte Carlo estimate of
    the *(true) Fisher* information. The two differ wherever the model does not predict the data's distribution.

    The result is an ordinary dict of tensors: `safetensors.torch.save_file(fisher, path)` and `load_file(path)`.

    Args:
        model: An image classifier; it is left as it was.
        dataset: Training data, rows with `pixel_values` `(channels, height, width)` and `labels`; not augmented.
        layers: What will be edited, see [`select_parameters`].
        labels: "true", those of the data (empirical Fisher), or "sampled" (Fisher).
        num_examples: Size of a random sample of the data; all of it if not given.
        batch_size: Examples that are differentiated together; memory holds that many gradients of the layers.
        seed: Decides the sample and the sampled labels. The global generators are not drawn from.
        progress: Title of the progress bar, none if `None`.

    Returns:
        For each parameter of `layers` a tensor like it, in squared nats per squared unit of the parameter.

    Raises:
        ValueError: If `labels` is neither, `num_examples` is not from 1 to the size of the data, or the data is empty.
    """
    if labels not in LABELS:
        raise ValueError(f"`labels` must be one of {', '.join(map(repr, LABELS))}, got {labels!r}.")
    count = len(dataset) if num_examples is None else num_examples
    if not 1 <= count <= len(dataset):
        raise ValueError(f"`num_examples` must be from 1 to the {len(dataset)} rows of the data, got {count}.")
    generator = torch.Generator().manual_seed(seed)
    sample = Subset(dataset, torch.randperm(len(dataset), generator=generator)[:count].tolist())
    loader = DataLoader(sample, batch_size, generator=torch.Generator())  # its own, else it draws from the global one
    params = {name: param.detach() for name, param in select_parameters(model, layers).items()}
    # In half precision a sum of thousands of batches would lose the small addends.
    kinds = {name: torch.promote_types(param.dtype, torch.float32) for name, param in params.items()}
    fisher = {name: torch.zeros_like(param, dtype=kinds[name]) for name, param in params.items()}
    with eval_mode(model), torch.no_grad(), tqdm(total=count, desc=progress, disable=progress is None) as bar:
        for batch in loader:
            images, classes = batch["pixel_values"].to(model.device, model.dtype), batch["labels"]
            if labels == "sampled":
                predicted = model(pixel_values=images).logits.softmax(-1).cpu()
                classes = torch.multinomial(predicted, 1, generator=generator).squeeze(1)
            for name, grads in _example_gradients(model, params, images, classes.to(model.device)).items():
                fisher[name] += grads.to(kinds[name]).square().sum(0) / count
            bar.update(len(images))
    return {name: value.to(params[name].dtype) for name, value in fisher.items()}


def _example_gradients(model: nn.Module, params: Params, images: Tensor, classes: Tensor) -> Params:
    """Gradient of each example's cross-entropy, every tensor with a leading dimension `batch`."""

    def loss(params: Params, image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, params, (), {"pixel_values": image.unsqueeze(0)}).logits
        return F.cross_entropy(logits, label.unsqueeze(0))

    return vmap(grad(loss), in_dims=(None, 0, 0))(params, images, classes)


def normalize_fisher(fisher: Params) -> Params:
    """Divided by its mean over all coordinates, so that a weight means about the same for any model.

    A network that fits its training data has tiny gradients there, and the scale of its Fisher information says how
    long it was trained. With a mean of 1, the penalty's gradient is `2 * weight * displacement` on average.

    Raises:
        ValueError: If it is 0 everywhere.
    """
    mean = sum(value.sum() for value in fisher.values()) / sum(value.numel() for value in fisher.values())
    if not mean > 0:
        raise ValueError("The Fisher information is 0 everywhere: no parameter of these layers changes a prediction.")
    return {name: value / mean for name, value in fisher.items()}
