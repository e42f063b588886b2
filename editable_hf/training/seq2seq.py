"""`EditableSeq2SeqTrainer`: Editable Training of encoder-decoder models (section 4.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, Seq2SeqTrainer

from editable_hf.core.constraints import IGNORE_INDEX, SequenceConstraint
from editable_hf.core.losses import token_locality_loss
from editable_hf.data.batching import TokenBatchSampler
from editable_hf.data.languages import languages_of
from editable_hf.data.requests import request_constraint
from editable_hf.models.beam_search import check_encoder_decoder
from editable_hf.seams.accelerate_seam import moved_to_device
from editable_hf.training.arguments import EditableSeq2SeqTrainingArguments
from editable_hf.training.checkpoints import WholeCheckpoints
from editable_hf.training.datasets import as_requests, as_train_dataset
from editable_hf.training.editor_config import EditorConfig
from editable_hf.training.mixin import EditableTrainerMixin


class EditableSeq2SeqTrainer(WholeCheckpoints, EditableTrainerMixin, Seq2SeqTrainer):
    """`Seq2SeqTrainer` that trains a model so that a few gradient steps on a few layers fix a given mistake.

    Each micro-batch draws `edits_per_step` requests, edits the model with each, and adds the terms of Eq. 2. The
    base loss, logging, checkpoints, resuming and `predict_with_generate` are those of `Seq2SeqTrainer`; its data
    collator defaults to `DataCollatorForSeq2Seq`.

    The model gets a submodule `editor`, which holds the values that the editor learns and stays after training:
    `model.editor.build()` is what to edit with. Weight files leave it out, `editor_config.json` beside them has it.

    Args:
        model: Any Hugging Face encoder-decoder model, as it is loaded.
        args: [`EditableSeq2SeqTrainingArguments`]; their defaults, in the folder `trainer_output`, if not given.
        edit_dataset: Requests with columns `input_ids`, `labels`, `alternatives`
            (from [`make_edit_requests`] or [`read_edit_requests`]). Without it the trainer minimizes the base loss
            alone, which is the control that an editable model is compared with. A `Dataset`, a list of rows, a dict
            of columns, or anything with a length whose rows are dicts.

    All other arguments are those of `Seq2SeqTrainer`, in its order.

    Raises:
        TypeError: At construction for a model without an encoder.
        ValueError: At construction for FSDP, DeepSpeed, DataParallel, flash-attention, losses of routers, unknown
            layers, or a request dataset that is empty or lacks a column.
    """

    def __init__(
        self,
        model=None,
        args: EditableSeq2SeqTrainingArguments | None = None,
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
            data_collator = DataCollatorForSeq2Seq(processing_class, model=model)
        super().__init__(
            model=model,
            args=EditableSeq2SeqTrainingArguments("trainer_output") if args is None else args,
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
        check_encoder_decoder(self.model)
        _check_token_batches(self.args, train_dataset)
        columns = ("input_ids", "labels", "alternatives")
        self._init_editable(None if edit_dataset is None else as_requests(edit_dataset, *columns))

    def request_constraint(self, request: Mapping[str, Any]) -> SequenceConstraint:
        constraint = request_constraint(request, self.model, length_penalty=self.args.edit_length_penalty)
        return constraint.to(self.args.device)

    def locality_loss(self, reference_logits: Tensor, edited_logits: Tensor, labels: Tensor) -> Tensor:
        return token_locality_loss(reference_logits, edited_logits, labels)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = _decoder_input_ids(self.model, labels)
        if self.model.training:
            inputs["use_cache"] = False
        loss, outputs = self.loss_and_outputs(model, inputs, labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, *args, **kwargs):
        # `DataCollatorForSeq2Seq` gives `labels=None` for rows without, which would count as labels.
        return super().prediction_step(model, {k: v for k, v in inputs.items() if v is not None}, *args, **kwargs)

    def editor_config(self) -> EditorConfig:
        config = super().editor_config()
        config.length_penalty = self.args.edit_length_penalty
        prefix = {"source_prefix": self.args.source_prefix} if self.args.source_prefix else {}
        config.inputs = languages_of(self.processing_class) | prefix
        return config

    def get_train_dataloader(self) -> DataLoader:
        """Batches by padded tokens if `max_tokens_per_batch` is set, otherwise as `Trainer` does."""
        args, usual = self.args, super().get_train_dataloader()
        if not args.max_tokens_per_batch:
            return usual
        dataset = usual.dataset
        lengths = [max(len(row["input_ids"]), len(row["labels"])) for row in dataset]
        sampler = TokenBatchSampler(lengths, args.max_tokens_per_batch, args.seed, args.process_index, args.world_size)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=usual.collate_fn,  # without the columns that the model does not take
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        # The sampler shards by itself; accelerate only moves the batches.
        return moved_to_device(loader, args.device)


def _check_token_batches(args: EditableSeq2SeqTrainingArguments, train_dataset) -> None:
    if args.max_tokens_per_batch and train_dataset is not None and not hasattr(train_dataset, "__len__"):
        raise ValueError(
            f"`max_tokens_per_batch` groups rows by length and needs all of them, but `train_dataset` is a "
            f"{type(train_dataset).__name__}, read in order. Leave it at 0, or make the rows a `Dataset`."
        )


def _decoder_input_ids(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """Labels shifted by one place, by the model's own rule where it has one (M2M100, which NLLB is, has none)."""
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    shifted = labels.roll(1, dims=-1)
    shifted[:, 0] = model.config.decoder_start_token_id
    return shifted.masked_fill(shifted == IGNORE_INDEX, model.config.pad_token_id)
