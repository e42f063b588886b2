"""`EditableImageTrainer`: Editable Training and fine-tuning of image classifiers (sections 4.1 and 4.3)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EvalPrediction, PreTrainedModel, Trainer, default_data_collator

from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.functional import eval_mode
from editable_hf.core.losses import locality_loss
from editable_hf.data.image_requests import ImageEditRequests, classes_at_ranks
from editable_hf.training.arguments import EditableImageTrainingArguments
from editable_hf.training.attached_editor import separate_group
from editable_hf.training.checkpoints import WholeCheckpoints
from editable_hf.training.checks import peft_config
from editable_hf.training.datasets import as_requests, as_train_dataset
from editable_hf.training.mixin import EditableTrainerMixin
from editable_hf.training.request_order import RequestOrder

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class EditableImageTrainer(WholeCheckpoints, EditableTrainerMixin, Trainer):
    """`Trainer` that trains an image classifier so that a few gradient steps on a few layers fix a given mistake.

    Each micro-batch draws `edits_per_step` requests, edits the model with each, and adds the terms of Eq. 2. The base
    forward runs first and in train mode; edits run in eval mode and never change BatchNorm's statistics.

    With `base_loss="distillation"` the base loss is the KL to the network that training started from, on the same
    crops (section 4.3); the paper's distillation baseline is that without `edit_dataset`.

    The model gets a submodule `editor`, which holds the values that the editor learns and stays after training:
    `model.editor.build()` is what to edit with. Weight files leave it out, `editor_config.json` beside them has it.

    Args:
        model: Any Hugging Face image classifier.
        args: [`EditableImageTrainingArguments`]; their defaults, in the folder `trainer_output`, if not given.
        edit_dataset: Rows with `pixel_values` `(channels, height, width)` and either `target`, the wanted class, or
            `rank`, its 0-based place among the predictions that the model makes at that moment (section 4.3.1); see
            [`ImageEditRequests`]. Without it the trainer minimizes the base loss alone.
        train_dataset: Rows with `pixel_values` and `labels`.
        eval_dataset: Same.
        compute_metrics: The error rate, unless given.

    All other arguments are those of `Trainer`, in its order.

    Raises:
        ValueError: At construction for FSDP, DeepSpeed, DataParallel, unknown layers, an empty request dataset or one
            whose rows lack a column, or an `extra_learning_rate` for a model without an extra block.
    """

    def __init__(
        self,
        model=None,
        args: EditableImageTrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        model_init=None,
        compute_loss_func=None,
        compute_metrics=None,
        callbacks=None,
        optimizers=(None, None),
        preprocess_logits_for_metrics=None,
        *,
        edit_dataset=None,
    ):
        if compute_metrics is None:
            compute_metrics = _error_rate
            preprocess_logits_for_metrics = preprocess_logits_for_metrics or _predicted_classes
        super().__init__(
            model=model,
            args=EditableImageTrainingArguments("trainer_output") if args is None else args,
            data_collator=data_collator,
            train_dataset=as_train_dataset(train_dataset),
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if data_collator is None:
            self.data_collator = _ModelInputs(self.model)
        if edit_dataset is not None:
            edit_dataset = _checked_requests(edit_dataset)
        self._init_editable(edit_dataset)
        if self.args.extra_learning_rate is not None and not self._extra_parameters():
            raise ValueError(
                f"`extra_learning_rate` is {self.args.extra_learning_rate}, but {type(self.model).__name__} has no "
                "extra block. Leave it unset, or wrap the model with `ExtraBlockForImageClassification.from_backbone`."
            )
        if isinstance(edit_dataset, ImageEditRequests):
            self._order = RequestOrder(len(edit_dataset), self.args, endless=edit_dataset.endless)

    def _extra_parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if "extra" in name.split(".")}

    def request_constraint(self, request: Mapping[str, Any]) -> ClassConstraint:
        inputs = {"pixel_values": request["pixel_values"].unsqueeze(0).to(self.args.device, self.model.dtype)}
        if "target" in request:
            return ClassConstraint(inputs, int(request["target"]))
        with eval_mode(self.model), torch.no_grad():
            logits = self.model(**inputs).logits
        return ClassConstraint(inputs, int(classes_at_ranks(logits, torch.tensor([request["rank"]]))))

    def locality_loss(self, reference_logits: Tensor, edited_logits: Tensor, labels: Tensor) -> Tensor:
        return locality_loss(reference_logits, edited_logits)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if self.args.freeze_batch_norm:
            # Each step anew: the Trainer puts the whole model in train mode.
            for module in self.model.modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()
        loss, outputs = self.loss_and_outputs(model, inputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        args = self.args
        if args.extra_learning_rate is not None:
            decaying = set(self.get_decay_parameter_names(self.model))
            for decay in (True, False):  # biases have none, as elsewhere
                own = [p for name, p in self._extra_parameters().items() if (name in decaying) == decay]
                separate_group(optimizer, own, args.extra_learning_rate, args.weight_decay if decay else 0.0)
        return optimizer


class _ModelInputs:
    """Makes a batch of what the model takes and of the classes; other columns (names, the image itself) stay behind.

    The Trainer would remove them from the dataset, but transforms of the dataset need them.
    """

    def __init__(self, model: PreTrainedModel):
        inner = model if peft_config(model) is None else model.get_base_model()
        self._names = {*inspect.signature(inner.forward).parameters, "label", "label_ids"}

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Tensor]:
        return default_data_collator([{k: v for k, v in row.items() if k in self._names} for row in rows])


def _predicted_classes(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(-1)


def _error_rate(prediction: EvalPrediction) -> dict[str, float]:
    """Fraction in [0, 1]."""
    return {"error_rate": float((prediction.predictions != prediction.label_ids).mean())}


def _checked_requests(edit_dataset) -> Sized:
    edit_dataset = as_requests(edit_dataset)
    row = edit_dataset[0]
    if "pixel_values" not in row or not {"target", "rank"} & set(row):
        raise ValueError(
            f"`edit_dataset` must give rows with `pixel_values` and `target` (or `rank`), got {sorted(row)}. Build it "
            "with `ImageEditRequests`."
        )
    return edit_dataset
