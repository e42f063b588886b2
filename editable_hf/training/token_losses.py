"""The base loss and the locality loss of models that predict tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from editable_hf.core.constraints import IGNORE_INDEX
from editable_hf.core.losses import distillation_loss, token_locality_loss
from editable_hf.training.accumulation import count_labels


class TokenLosses:
    """Losses that are averaged over tokens, for a trainer whose batches have `labels`, -100 where none counts."""

    def aligned(self, labels: Tensor) -> Tensor:
        """The labels at the positions whose logits predict them: their own in a decoder that reads them shifted."""
        return labels

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        aligned = [{"labels": self.aligned(batch["labels"])} for batch in samples]
        return samples, count_labels(aligned, self.accelerator)

    def _base_loss(self, logits: Tensor, labels: Tensor, inputs: Mapping[str, Tensor], num_items) -> Tensor:
        """Mean over the labels of the whole accumulated batch (of this batch in evaluation)."""
        if self.compute_loss_func is not None and (self.teacher is None or not self.model.training):
            return self.compute_loss_func({"logits": logits}, labels, num_items_in_batch=num_items)
        labels = self.aligned(labels)
        num_tokens = (labels != IGNORE_INDEX).sum()
        weight = 1.0 if num_items is None else num_tokens / num_items
        if self.teacher is not None and self.model.training:
            with torch.no_grad():
                teacher_logits = self.teacher(**inputs).logits
            return weight * distillation_loss(teacher_logits, logits, labels)
        return weight * F.cross_entropy(
            logits.flatten(0, 1),
            labels.flatten(),
            ignore_index=IGNORE_INDEX,
            label_smoothing=self.args.label_smoothing_factor,
        )

    def locality_loss(self, reference_logits: Tensor, edited_logits: Tensor, labels: Tensor) -> Tensor:
        return token_locality_loss(reference_logits, edited_logits, self.aligned(labels))
