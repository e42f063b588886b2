"""What Editable Training cannot run on, said at construction."""

from __future__ import annotations

from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import is_peft_available

from editable_hf.core.editing import check_one_device
from editable_hf.launch import check_launch
from editable_hf.seams.torch_seam import is_compiled
from editable_hf.seams.transformers_seam import attention_of


def check_supported(
    model: PreTrainedModel, args: TrainingArguments, sharded: bool = False, has_scheduler: bool = False
) -> None:
    """Raises `ValueError` for set-ups in which an edit cannot be differentiated or processes would wait forever.

    And `RuntimeError` for a launch that did not start what was asked for, see [`check_launch`].
    """
    check_launch(args.world_size)
    check_one_device(model)
    if sharded or args.fsdp or args.deepspeed:
        raise ValueError(
            "FSDP and DeepSpeed are not supported: processes take different numbers of edit steps and would wait for "
            "each other forever. Use plain data parallelism: `accelerate launch --multi_gpu`."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"This process sees {args.n_gpu} GPUs and would use DataParallel, which is not supported. Start one "
            "process a GPU with `accelerate launch --multi_gpu`, or show it one with CUDA_VISIBLE_DEVICES=0."
        )
    if args.ddp_find_unused_parameters:
        raise ValueError(
            "`ddp_find_unused_parameters=True` is not supported: DDP would take the editor's values for unused, "
            "because the edit runs outside of the wrapped model. Leave it unset."
        )
    if has_scheduler:
        raise ValueError(
            "`optimizers` holds a learning-rate scheduler, which does not know the editor's values that the optimizer "
            "gets as a group of their own. Pass `(optimizer, None)` and choose one by `lr_scheduler_type`."
        )
    attention = attention_of(model.config)
    if attention not in (None, "eager", "sdpa"):
        raise ValueError(
            f"The model uses {attention!r} attention, which has no double backward; an edit cannot be differentiated. "
            'Call `model.set_attn_implementation("sdpa")`, or load it with attn_implementation="sdpa".'
        )
    # Read from the configuration alone, as the models do.
    if getattr(model.config, "output_router_logits", False):
        raise ValueError(
            "The model's `output_router_logits` is set, which adds the losses of its routers to the loss that the "
            "model computes; the trainer computes its own and would leave them out. Set "
            "`model.config.output_router_logits = False` to train without them."
        )
    _check_wrapped(model)


def _check_wrapped(model: PreTrainedModel) -> None:
    """Raises `ValueError` for what `torch.compile` or peft made of a model and an edit cannot look into."""
    if is_compiled(model):
        raise ValueError(
            "The model is compiled already, but edits, which are differentiated twice, need its own code. Give the "
            "model as it was before `torch.compile`; `torch_compile=True` in the arguments compiles the base forward."
        )
    adapter = peft_config(model)
    if adapter is not None and adapter.is_prompt_learning:
        raise ValueError(
            f"The model's adapter is {adapter.peft_type.value}, which puts virtual tokens before each text; losses "
            "and edits count the tokens of the text alone. Use an adapter of weights, such as LoRA."
        )


def peft_config(model: PreTrainedModel):
    """What a peft model's adapter is; `None` for any other model."""
    if not is_peft_available():
        return None
    from peft import PeftModel

    return model.active_peft_config if isinstance(model, PeftModel) else None
