"""What the editable trainers share: the terms of Eq. 2 beside the base loss, and the editor as part of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from editable_hf.core.constraints import IGNORE_INDEX, Constraint
from editable_hf.core.continuations import joined
from editable_hf.core.edits_together import edit_each
from editable_hf.core.functional import widened
from editable_hf.core.losses import distillation_loss, edit_loss, objective
from editable_hf.models.iwslt_transformer import freeze_position_tables
from editable_hf.seams.transformers_seam import TrainerHooks
from editable_hf.training.accumulation import count_labels, labels_of
from editable_hf.training.attached_editor import (
    EditorWithPushes,
    attach_editor,
    editable_names,
    restore_editor,
    separate_group,
)
from editable_hf.training.checks import check_supported
from editable_hf.training.editor_config import EditorConfig
from editable_hf.training.finite import FiniteNumbers
from editable_hf.training.locality import LocalityBatch
from editable_hf.training.model_card import complete_model_card
from editable_hf.training.request_order import RequestOrder
from editable_hf.training.term_log import TermLog


class EditableTrainerMixin(TrainerHooks, ABC):
    """Adds Editable Training to a `Trainer`; a subclass defines the constraint and the locality loss."""

    # compute_loss normalizes by the whole accumulated batch itself.
    loss_is_scaled_for_ga = True

    @abstractmethod
    def request_constraint(self, request: Mapping[str, Any]) -> Constraint:
        """The constraint `l_e` of one row of `edit_dataset`, on the model's device."""

    @abstractmethod
    def locality_loss(self, reference_logits: Tensor, edited_logits: Tensor, labels: Tensor) -> Tensor:
        """`L_loc` (Eq. 4) of one edit on one batch, scalar."""

    def aligned(self, labels: Tensor) -> Tensor:
        """The labels at the places of the logits that predict them: their own, if a subclass does not move them."""
        return labels

    def _init_editable(self, edit_dataset) -> None:
        args, sharded = self.args, self.is_fsdp_enabled or self.is_deepspeed_enabled
        check_supported(self.model, args, sharded, self.lr_scheduler is not None)
        self.edit_dataset, self._terms = edit_dataset, TermLog()
        self._finite = FiniteNumbers(self._terms)
        self.add_callback(self._finite)
        self.add_callback(EditorWithPushes(self.editor_config))
        self._order = None if edit_dataset is None else RequestOrder(len(edit_dataset), args)
        self._take_model(self.model)

    def _take_model(self, model) -> None:
        freeze_position_tables(model)
        self.edit_parameters = editable_names(model, self.args.edit_layers)
        distills = self.args.base_loss == "distillation"
        self.teacher = deepcopy(model).eval().requires_grad_(False) if distills else None
        attach_editor(model, self.args)
        # Without edits nothing uses the editor's values, and DDP would wait for the gradient of whatever requires one.
        model.editor.requires_grad_(self.edit_dataset is not None)

    def call_model_init(self, trial=None):
        """The model that `model_init` makes, at the start of each training run, with its editor."""
        model = super().call_model_init(trial)
        if hasattr(self, "edit_dataset"):  # Trainer's `__init__` makes the first one, which `_init_editable` takes
            self._take_model(model)
        return model

    def locality_batch(self, inputs: Mapping[str, Any], labels: Tensor) -> LocalityBatch:
        """Compares edits on the batch whose base forward runs within its `recorded()`."""
        names, loss = self.edit_parameters, partial(self.locality_loss, labels=labels)
        return LocalityBatch.of(self.model, names, inputs, loss, self.args)

    def loss_and_outputs(self, model, inputs: Mapping[str, Any], labels: Tensor, num_items) -> tuple[Tensor, Any]:
        """Eq. 2, and the outputs of the base forward; without edits and in evaluation the base loss alone."""
        batch = self.locality_batch(inputs, labels) if self.edit_dataset is not None and self.model.training else None
        with nullcontext() if batch is None else batch.recorded():
            outputs = model(**inputs)
        base = self._base_loss(outputs.logits, labels, inputs, num_items)
        return (base if batch is None else self.add_edit_terms(base, batch)), outputs

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._order is not None:
            self._order.start_update()
        aligned = [{"labels": self.aligned(labels_of(batch))} for batch in samples]
        return samples, count_labels(aligned, self.accelerator)

    def _base_loss(self, logits: Tensor, labels: Tensor, inputs: Mapping[str, Any], num_items) -> Tensor:
        """Mean over the labels of the whole accumulated batch (of this batch in evaluation)."""
        distills = self.teacher is not None and self.model.training
        if self.compute_loss_func is not None and not distills:
            return self.compute_loss_func({"logits": logits}, labels, num_items_in_batch=num_items)
        labels = self.aligned(labels)
        weight = 1.0 if num_items is None else (labels != IGNORE_INDEX).sum() / num_items
        if distills:
            with torch.no_grad():
                teacher_logits = self.teacher(**inputs).logits
            return weight * distillation_loss(teacher_logits, logits, labels)
        smoothing = self.args.label_smoothing_factor
        flat = widened(logits.flatten(0, -2)), labels.flatten()
        return weight * F.cross_entropy(*flat, ignore_index=IGNORE_INDEX, label_smoothing=smoothing)

    def add_edit_terms(self, base: Tensor, batch: LocalityBatch) -> Tensor:
        """Eq. 2 from the base loss, whose forward has run in train mode through the wrapped model.

        The edit runs on the unwrapped model afterwards: a train-mode BatchNorm forward after it would spoil its
        graph, and DDP averages all gradients because one forward went through the wrapper.
        """
        args, editor, accumulation = self.args, self.model.editor, self.current_gradient_accumulation_steps
        groups, layers = self._grouped(self._draw()), self.edit_parameters
        constraints = [self._constraint(group) for group in groups]
        results = edit_each(self.model, constraints, editor.build(), layers, args.edit_max_steps, args.replay)
        self._finite.check_edits(results, groups, self.state.global_step)
        edit_term = torch.stack([edit_loss(result.loss) for result in results]).mean()
        # An edit of 0 steps changed nothing: its locality term is exactly 0, and so is its gradient.
        moved = [result.params for result in results if result.num_steps > 0]
        locality = batch.compare(moved) / len(results) if moved else torch.zeros_like(base)
        self._terms.add(base * accumulation, edit_term, locality, results)
        total = objective(base, edit_term / accumulation, locality / accumulation, args.edit_coef, args.locality_coef)
        # Where no edit took a step, the editor's values have no other use on this process, and DDP waits for them.
        return total + sum(0.0 * parameter.sum() for parameter in editor.parameters())

    def _draw(self) -> list[Mapping[str, Any]]:
        return [{"id": row, **self.edit_dataset[row]} for row in self._order.rows(self.state.global_step)]

    def _grouped(self, requests: list[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
        """The requests of each edit."""
        size = self.args.edits_at_once
        return [requests[start : start + size] for start in range(0, len(requests), size)]

    def _constraint(self, requests: list[Mapping[str, Any]]) -> Constraint:
        return joined([self.request_constraint(each) for each in requests])

    def log(self, logs, *args, **kwargs) -> None:
        if "loss" in logs and self._terms.count:
            editor = {f"editor/{name}": value for name, value in self.model.editor.values().items()}
            logs |= self._terms.means(self.accelerator) | editor
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model=None):
        optimizer, editor = super().create_optimizer(model), self.model.editor
        return separate_group(optimizer, editor.parameters(), self.args.hyperparameter_learning_rate)

    def write_model(self, folder: str, state_dict: dict[str, Any] | None) -> None:
        super().write_model(folder, state_dict)
        if self.args.should_save:
            self.editor_config().save_pretrained(folder)

    def weights_loaded(self, folder: str) -> None:
        super().weights_loaded(folder)
        restore_editor(self.model, folder)

    def create_model_card(self, *args, **kwargs) -> None:
        super().create_model_card(*args, **kwargs)
        if self.args.should_save:
            complete_model_card(self.args.output_dir, self.editor_config())

    def editor_config(self) -> EditorConfig:
        """The editor as it stands, as it is saved beside the weights."""
        return EditorConfig.of(self.model.editor, list(self.args.edit_layers), self.args.edit_max_steps)
