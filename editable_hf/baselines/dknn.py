"""Deep k-nearest neighbors (Papernot & McDaniel, 2018), edited by flipping labels (section 4.1, Table 3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from editable_hf.core.constraints import ClassConstraint, Constraint
from editable_hf.core.editing import EditFunction
from editable_hf.core.editors import Params
from editable_hf.core.functional import FunctionalModel, eval_mode
from editable_hf.core.selection import part_modules
from editable_hf.models import StemResNetConfig
from editable_hf.models.image_classifier import ImageClassifier, check_rebuilt
from editable_hf.seams.torch_seam import intercepted
from editable_hf.seams.transformers_seam import SubConfigSpec, any_attention

# Similarities that are held at a time: 64 MB in float32, whatever the size of the reference set and of a batch.
_MAX_SIMILARITIES = 2**24


@strict
class DkNNConfig(PreTrainedConfig):
    """Configuration of a [`DkNNForImageClassification`], made by its `from_backbone`.

    Args:
        backbone: Configuration of the image classifier that gives the embeddings. It also gives the classes.
        layers: Qualified names of the backbone's modules whose pooled outputs are the embeddings.
        widths: Size of each layer's embedding.
        num_references: Images in the reference set.
        k: Neighbors that vote in each layer.

    Raises:
        ValueError: If `k` is not from 1 to `num_references`.
    """

    model_type = "dknn"
    sub_configs_defaults = {"backbone": SubConfigSpec(AutoConfig, model_type=StemResNetConfig.model_type)}

    backbone: dict | PreTrainedConfig | None = None
    layers: list[str] | tuple[str, ...] = ()
    widths: list[int] | tuple[int, ...] = ()
    num_references: int = 10
    k: int = 10

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        self.id2label, self.label2id = self.backbone.id2label, self.backbone.label2id
        if not 1 <= self.k <= self.num_references:
            raise ValueError(f"`k` must be from 1 to the {self.num_references} references, got {self.k}.")


@any_attention  # which one is possible is for the classifier inside to say
class DkNNForImageClassification(ImageClassifier):
    """Classifies an image by the labels of its nearest neighbors in the embeddings of a trained classifier's layers.

    An embedding is a layer's output, averaged over space and scaled to length 1, so that the nearest neighbors are
    those of the largest cosine similarity. The search is exact. The `k` nearest in each layer vote. No class has a
    larger p-value of Papernot & McDaniel than the one with the most votes, whatever those values are calibrated on.

    The logits are the fractions of the votes, plus less than one vote that puts classes with as many votes in order:
    those whose neighbors' similarities have the larger sum first. No two classes have the same logit, so that
    `l_e <= 0` (a difference of votes here, not of nats) exactly when the wanted class is predicted.

    The references' labels are the parameter `labels`, int64, which [`flip_labels`] edits; they are saved with the
    model. `model.config.k` can be changed at any time.

    Args:
        config: Made by [`DkNNForImageClassification.from_backbone`].
    """

    config_class = DkNNConfig

    def __init__(self, config: DkNNConfig):
        super().__init__(config)
        self.search = _NeighborSearch(AutoModelForImageClassification.from_config(config.backbone), config)
        self.labels = nn.Parameter(torch.zeros(config.num_references, dtype=torch.long), requires_grad=False)
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        model: PreTrainedModel,
        dataset: Dataset,
        layers: str | Sequence[str],
        k: int = 10,
        *,
        batch_size: int = 250,
        num_workers: int = 0,
        progress: str | None = "reference set",
    ) -> DkNNForImageClassification:
        """Embeds a reference set.

        Args:
            model: A trained image classifier. Nothing is copied: it becomes part of the result.
            dataset: The reference set, in general the training data; rows with `pixel_values`
                `(channels, height, width)` and `labels`; not augmented.
            layers: Modules of `model` by qualified name, or parts of a ResNet or DenseNet (`chain3`), whose last
                module is taken.
            k: Neighbors that vote in each layer.
            batch_size: Images that are embedded together.
            num_workers: Processes that load images.
            progress: Title of the progress bar, none if `None`.

        Raises:
            TypeError: If the result could not be loaded again, because `AutoModelForImageClassification` would build
                another class for the model's configuration.
            ValueError: If no layer is named, one does not exist or gives no embedding, `k` does not fit the reference
                set, or a label is not a class of the model.

        Example:
            >>> dknn = DkNNForImageClassification.from_backbone(model, train_set, "chain3")  # doctest: +SKIP
            >>> result = edit(dknn, constraint, flip_labels(), "labels")  # doctest: +SKIP
        """
        layers = [layers] if isinstance(layers, str) else list(layers)
        if not layers:
            raise ValueError("`layers` is empty: name at least one layer to embed images by, e.g. 'chain3'.")
        names = [_module_name(model, layer) for layer in layers]
        loader = DataLoader(dataset, batch_size, num_workers=num_workers, generator=torch.Generator())
        batches, classes = [], []
        with eval_mode(model), torch.no_grad():
            for batch in tqdm(loader, desc=progress, disable=progress is None, unit="batch"):
                batches.append(_embed(model, batch["pixel_values"].to(model.device, model.dtype), names))
                classes.append(batch["labels"])
        references, labels = torch.cat([torch.cat(each, 1) for each in batches]), torch.cat(classes)
        if not 0 <= labels.min() <= labels.max() < model.config.num_labels:
            raise ValueError(
                f"The reference set has labels from {labels.min()} to {labels.max()}, but the model's classes are 0 "
                f"to {model.config.num_labels - 1}; give the data that it was trained on."
            )
        config = DkNNConfig(
            backbone=copy.deepcopy(model.config),
            layers=names,
            widths=[part.shape[1] for part in batches[0]],
            num_references=len(labels),
            k=k,
        )
        return cls._assemble(config, model, references, labels)

    @classmethod
    def _assemble(
        cls, config: DkNNConfig, backbone: PreTrainedModel, references: Tensor, labels: Tensor
    ) -> DkNNForImageClassification:
        with torch.device("meta"):  # without new values for the trained weights
            wrapped = cls(config)
        check_rebuilt(wrapped.search.backbone, backbone)
        wrapped.search.backbone, wrapped.search.references = backbone, references
        wrapped.labels = nn.Parameter(labels.to(references.device, torch.long), requires_grad=False)
        return wrapped.train(backbone.training)

    @property
    def memory(self) -> int:
        """Bytes of the reference set: embeddings and labels."""
        return self.search.references.nbytes + self.labels.nbytes

    def classify(self, pixel_values: Tensor) -> Tensor:
        # The search ends before `labels` is used: it answers from the record for all edits of the labels.
        neighbors, similarities = self.search(pixel_values)
        labels, similarities = self.labels[neighbors.flatten(1)], similarities.flatten(1).float()
        none = similarities.new_zeros(len(labels), self.config.num_labels)
        votes = none.scatter_add(1, labels, torch.ones_like(similarities))  # (batch, num_classes)
        order = none.scatter_add(1, labels, similarities).argsort(dim=1, stable=True).argsort(1)
        return (votes + order / self.config.num_labels) / labels.shape[1]


class _NeighborSearch(nn.Module):
    """The `k` nearest references in each layer.

    Attributes:
        references: Unit embeddings of the reference set, the layers side by side, `(num_references, sum(widths))`.
    """

    def __init__(self, backbone: PreTrainedModel, config: DkNNConfig):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.register_buffer("references", torch.zeros(config.num_references, sum(config.widths)))

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Indices into the reference set and cosine similarities, nearest first, each `(batch, num_layers, k)`."""
        queries = _embed(self.backbone, pixel_values, self.config.layers)
        references = self.references.split(list(self.config.widths), 1)
        found = [_nearest(*layer, self.config.k) for layer in zip(queries, references, strict=True)]
        indices, similarities = zip(*found, strict=True)
        return torch.stack(indices, 1), torch.stack(similarities, 1)


def _nearest(queries: Tensor, references: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Indices and similarities of the most similar references, each `(num_queries, k)`."""
    rows = max(1, _MAX_SIMILARITIES // len(references))
    found = [(part @ references.T).topk(k) for part in queries.split(rows)]
    return torch.cat([each.indices for each in found]), torch.cat([each.values for each in found])


def _embed(model: nn.Module, pixel_values: Tensor, layers: Sequence[str]) -> list[Tensor]:
    """Outputs of the modules with these names, averaged over space and scaled to length 1, each `(batch, width)`."""
    modules = [model.get_submodule(name) for name in layers]
    outputs: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        outputs[module] = output = forward(*args, **kwargs)
        return output

    # No forward hooks: a module with hooks inside never answers from a record.
    with intercepted(set(modules), keep):
        model(pixel_values=pixel_values)
    return [F.normalize(_pool(outputs.get(each), name), dim=1) for each, name in zip(modules, layers, strict=True)]


def _pool(output: Any, layer: str) -> Tensor:
    if isinstance(output, Tensor) and output.ndim in (2, 4):
        return output if output.ndim == 2 else output.mean((2, 3))
    if output is None:
        raise ValueError(f"Layer {layer!r} is not called in the model's forward. Choose a module that is.")
    found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise ValueError(
        f"Layer {layer!r} must give features of shape (batch, channels, height, width) or (batch, channels), "
        f"got {found}. Choose a layer that gives the output of a convolution, of a block or of pooling."
    )


def _module_name(model: nn.Module, layer: str) -> str:
    return layer if layer in dict(model.named_modules()) else part_modules(model, layer)[-1]


def flip_labels() -> EditFunction:
    """Edits a [`DkNNForImageClassification`] "by flipping labels of nearest neighbors until the model predicts the
    correct class" (section 4.1).

    The neighbors of the request's image are taken nearest first: rank by rank, and within a rank layer by layer.
    Those that have the wanted label already are passed over. When all have it, all votes are for it, so that an edit
    always succeeds. `history` has `l_e` before and after every flip, and `num_steps` is the number of flips. These are
    no gradient steps, of which the paper reports none here, and `max_steps` does not limit them.

    Returns:
        An editor for `edit(model, constraint, flip_labels(), "labels")` with a [`ClassConstraint`].

    Raises:
        TypeError: When called, if the model is no `DkNNForImageClassification` or the constraint of another kind.
        ValueError: When called, if other parameters than `labels` are to be edited.
    """

    def flip(
        model: FunctionalModel, constraint: Constraint, params: Params, max_steps: int
    ) -> tuple[Params, Tensor, list[float]]:
        if not isinstance(model.model, DkNNForImageClassification) or not isinstance(constraint, ClassConstraint):
            raise TypeError(
                "`flip_labels` edits a DkNNForImageClassification by a ClassConstraint, got a "
                f"{type(model.model).__name__} and a {type(constraint).__name__}."
            )
        if set(params) != {"labels"}:
            raise ValueError(f'`flip_labels` edits layers="labels" and nothing else, got {", ".join(params)}.')
        neighbors, _ = model.model.search(constraint.inputs["pixel_values"])  # (batch, num_layers, k)
        loss = constraint(model, params)
        history = [loss.item()]
        for index in neighbors.permute(2, 0, 1).flatten().tolist():
            if history[-1] <= 0:
                break
            if params["labels"][index] != constraint.target:
                labels = params["labels"].clone()
                labels[index] = constraint.target
                params = {"labels": labels}
                loss = constraint(model, params)
                history.append(loss.item())
        return params, loss, history

    return flip
