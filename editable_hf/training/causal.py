"""`EditableCausalLMTrainer`: Editable Training of decoder-only language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq, Trainer

from editable_hf.core.constraints import IGNORE_INDEX
from editable_hf.core.continuations import ContinuationConstraint
from editable_hf.core.losses import token_locality_loss
from editable_hf.data.continuations import check_decoder_only, continuation_constraint
from editable_hf.training.arguments import EditableCausalLMTrainingArguments
from editable_hf.training.checkpoints import WholeCheckpoints
from editable_hf.training.datasets import as_requests, as_train_dataset
from editable_hf.training.mixin import EditableTrainerMixin


class EditableCausalLMTrainer(WholeCheckpoints, EditableTrainerMixin, Trainer):
    """`Trainer` that trains a language model so that a few gradient steps on a few layers change one answer.

    Each micro-batch draws `edits_per_step` requests, edits the model with each, and adds the terms of Eq. 2; the
    locality term is averaged over the tokens of the batch. The base loss is that of the next token, or with
    `base_loss="distillation"` the KL divergence from the model as it was given. Rows of `train_dataset` without
    `labels` are learned whole; labels of -100 (a prompt's) do not count.

    The model gets a submodule `editor`, which holds the values that the editor learns and stays after training:
    `model.editor.build()` is what to edit with. Weight files leave it out, `editor_config.json` beside them has it.

    Args:
        model: Any decoder-only model of `AutoModelForCausalLM`, as it is loaded.
        args: [`EditableCausalLMTrainingArguments`]; their defaults, in the folder `trainer_output`, if not given.
        edit_dataset: Requests with columns `input_ids`, `labels`, `alternatives` (from
            [`make_edit_requests`]). Without it the trainer minimizes the base loss alone.

    All other arguments are those of `Trainer`, in its order; with a `processing_class`, batches are padded by default.

    Raises:
        TypeError: At construction for an encoder-decoder or a model that does not generate.
        ValueError: At construction for what [`EditableSeq2SeqTrainer`] refuses, too.
    """

    def __init__(
        self,
        model=None,
        args: EditableCausalLMTrainingArguments | None = None,
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
        if data_collator is None and processing_class is not None:
            data_collator = _Padding(processing_class)
        super().__init__(
            model=model,
            args=EditableCausalLMTrainingArguments("trainer_output") if args is None else args,
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
        check_decoder_only(self.model)
        columns = ("input_ids", "labels", "alternatives")
        self._init_editable(None if edit_dataset is None else as_requests(edit_dataset, *columns))

    def request_constraint(self, request: Mapping[str, Any]) -> ContinuationConstraint:
        return continuation_constraint(request, self.model).to(self.args.device)

    def aligned(self, labels: Tensor) -> Tensor:
        return F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)

    def locality_loss(self, reference_logits: Tensor, edited_logits: Tensor, labels: Tensor) -> Tensor:
        return token_locality_loss(reference_logits, edited_logits, self.aligned(labels))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {**inputs, "use_cache": False}
        labels = inputs.pop("labels")
        loss, outputs = self.loss_and_outputs(model, inputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class _Padding:
    """Pads rows to a batch; those without labels are their own, padding left out."""

    def __init__(self, tokenizer):
        self._pad = DataCollatorForSeq2Seq(tokenizer)

    def __call__(self, rows: list[Mapping[str, Any]]) -> Mapping[str, Tensor]:
        return self._pad([{"labels": list(row["input_ids"]), **row} for row in rows])
