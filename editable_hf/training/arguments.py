"""Training arguments of Editable Training, parsed by `HfArgumentParser` like any others."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from transformers.utils import is_torch_xla_available

from editable_hf.core.editors import EDITORS

BASE_LOSSES = ("task", "distillation")


def _allow_bf16_on_cpu(args: TrainingArguments) -> None:
    # TrainingArguments refuses `bf16` on a machine without a GPU unless it is told that the CPU is what is meant.
    if args.bf16 and not torch.accelerator.is_available() and not is_torch_xla_available():
        args.use_cpu = True


@dataclass
class EditableArguments:
    """What Eq. 1 and Eq. 2 need beyond a `TrainingArguments`, which a subclass has as a base, too.

    Groups: the editor (Eq. 1), the objective (Eq. 2), speed.
    """

    # The editor, Eq. 1
    editor: str = field(default="rmsprop", metadata={"help": f"Editor function, one of: {', '.join(EDITORS)}."})
    edit_learning_rate: float = field(
        default=1e-3, metadata={"help": "Learning rate of the editor (alpha in Eq. 1); Table 6 uses 1e-3 and 3e-4."}
    )
    edit_layers: list[str] = field(
        default_factory=lambda: ["last_decoder_layer"],
        metadata={
            "help": "Layers an edit may move: module or parameter names, suffixes of them, patterns with '*', or "
            "last_decoder_layer (section 4.4)."
        },
    )
    edit_max_steps: int = field(default=10, metadata={"help": "Most gradient steps of one edit (k in Eq. 1)."})
    learn_edit_learning_rate: bool = field(
        default=False,
        metadata={
            "help": "Train alpha with the model (end of section 3.2), as the editor's other values, such as RMSProp's "
            "beta, always are; Table 6's rows hold it fixed."
        },
    )
    hyperparameter_learning_rate: float = field(
        default=1e-3,
        metadata={"help": "Outer learning rate of the editor's trained values (Editable+CNP: its encoder); no decay."},
    )
    # The objective, Eq. 2
    edit_coef: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the edit term (c_edit in Eq. 2), for a base loss averaged over tokens. The paper's "
            "public code uses 100 against a loss summed over about 3,600 tokens, which is about 0.03 here."
        },
    )
    locality_coef: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the locality term (c_loc in Eq. 2), for a base loss averaged over tokens. The paper's "
            "100 comes to about 0.03 here; 1 gave less drawdown at the same BLEU in our runs."
        },
    )
    base_loss: str = field(
        default="task",
        metadata={
            "help": "L_base in Eq. 2: 'task' (cross-entropy), or 'distillation' (KL towards the model that training "
            "started from, section 4.3)."
        },
    )
    edits_per_step: int = field(
        default=1,
        metadata={
            "help": "Edits made for each batch on each process, each of a request drawn; their terms are averaged. "
            "On a GPU they run together."
        },
    )
    edits_at_once: int = field(
        default=1,
        metadata={
            "help": "Requests that one edit satisfies together (JointConstraint), for models that are to be patched "
            "with many at once. Each of the `edits_per_step` edits then draws as many."
        },
    )
    # Speed
    replay: bool = field(
        default=True,
        metadata={
            "help": "Run edits and the locality term from the first edited layer on, which changes no number. Turn it "
            "off for a model that runs other modules at each call."
        },
    )
    reuse_base_forward: bool = field(
        default=True,
        metadata={
            "help": "Compute the locality term (Eq. 4) from the activations that enter the edited layers in the base "
            "forward, dropout included, instead of running the whole model a second time in eval mode. Needs `replay`."
        },
    )

    def __post_init__(self):
        _allow_bf16_on_cpu(self)
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # Trainer would take True, see check_supported
        self._check_editable()

    def _check_editable(self) -> None:
        """Raises `ValueError` for values that cannot work."""
        if self.editor not in EDITORS:
            raise ValueError(f"Unknown `editor` {self.editor!r}. Choose one of: {', '.join(EDITORS)}.")
        if self.base_loss not in BASE_LOSSES:
            raise ValueError(f"`base_loss` must be one of {', '.join(BASE_LOSSES)}, got {self.base_loss!r}.")
        if not self.edit_learning_rate > 0:
            raise ValueError(f"`edit_learning_rate` must be more than 0, got {self.edit_learning_rate}.")
        for name in ("edit_coef", "locality_coef", "hyperparameter_learning_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        for name in ("edit_max_steps", "edits_per_step", "edits_at_once"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {getattr(self, name)}.")
        if not self.edit_layers:
            raise ValueError("`edit_layers` is empty: name at least one layer, e.g. last_decoder_layer.")


@dataclass
class EditableSeq2SeqTrainingArguments(EditableArguments, Seq2SeqTrainingArguments):
    """Arguments of [`EditableSeq2SeqTrainer`]: those of `Seq2SeqTrainingArguments` and the editor's.

    Defaults of `Seq2SeqTrainingArguments` that are changed: `ddp_find_unused_parameters` is `False`.
    """

    edit_length_penalty: float = field(
        default=0.0,
        metadata={
            "help": "Exponent of the length normalization in l_e: 0 compares sentence log-probabilities (the paper), "
            "the decoder's own `length_penalty` makes l_e <= 0 mean that its score is best."
        },
    )
    source_prefix: str = field(
        default="",
        metadata={
            "help": "What stands before each source in your data, such as T5's 'translate German to English: '. "
            "`editor_config.json` remembers it, and the commands of editable-hf put it before sentences."
        },
    )
    max_tokens_per_batch: int = field(
        default=0,
        metadata={
            "help": "Batch by padded tokens instead of sentences (fairseq's --max-tokens; 4096 for IWSLT14). 0 keeps "
            "`per_device_train_batch_size`."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_tokens_per_batch < 0:
            raise ValueError(f"`max_tokens_per_batch` must be 0 or more, got {self.max_tokens_per_batch}.")
        if self.max_tokens_per_batch and self.auto_find_batch_size:
            raise ValueError(
                "`auto_find_batch_size` makes `per_device_train_batch_size` smaller, which `max_tokens_per_batch` "
                f"({self.max_tokens_per_batch}) replaces; leave one of them unset."
            )


@dataclass
class EditableCausalLMTrainingArguments(EditableArguments, TrainingArguments):
    """Arguments of [`EditableCausalLMTrainer`]: those of `TrainingArguments` and the editor's.

    Defaults that are changed: `edit_layers` is `last_decoder_mlp`, `ddp_find_unused_parameters` is `False`.
    """

    edit_layers: list[str] = field(
        default_factory=lambda: ["last_decoder_mlp"],
        metadata={
            "help": "Layers an edit may move: last_decoder_mlp, last_decoder_layer, module or parameter names such as "
            "layers.3.mlp.down_proj, suffixes of them, or patterns with '*'."
        },
    )


@dataclass
class EditableImageTrainingArguments(EditableArguments, TrainingArguments):
    """Arguments of [`EditableImageTrainer`]: those of `TrainingArguments` and the editor's.

    Defaults of [`EditableArguments`] and `TrainingArguments` that are changed: `edit_layers` is `chain3` (Table 3),
    `edit_coef` and `locality_coef` are 0.01, `remove_unused_columns` and `ddp_find_unused_parameters` are `False`.
    """

    edit_layers: list[str] = field(
        default_factory=lambda: ["chain3"],
        metadata={
            "help": "Layers an edit may move: stem, chain1 to chain4, head, extra (section 4.3), all, module or "
            "parameter names, suffixes of them, or patterns with '*'; condition for Editable+CNP (section 4.1)."
        },
    )
    edit_coef: float = field(
        default=0.01, metadata={"help": "Weight of the edit term (c_edit in Eq. 2); the public code's for CIFAR-10."}
    )
    locality_coef: float = field(
        default=0.01, metadata={"help": "Weight of the locality term (c_loc in Eq. 2); Table 3 has 0.01 and 0.1."}
    )
    extra_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the extra block, by default that of all weights. Section 4.3 has 1e-3, with "
            "`learning_rate` 1e-5."
        },
    )
    freeze_batch_norm: bool = field(
        default=False,
        metadata={
            "help": "Keep BatchNorm's running statistics and use them in the base loss, as edits do. For fine-tuning "
            "with large `edit_coef` and `locality_coef`, which otherwise pull the two kinds of statistics apart."
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Leave out dataset columns that the model does not take, before transforms."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.extra_learning_rate is not None and not self.extra_learning_rate > 0:
            raise ValueError(f"`extra_learning_rate` must be more than 0, got {self.extra_learning_rate}.")
