from __future__ import annotations

import pytest
import torch
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from editable_hf import EditableImageTrainingArguments, EditableSeq2SeqTrainingArguments


def parse(*words):
    (args,) = HfArgumentParser(EditableSeq2SeqTrainingArguments).parse_args_into_dataclasses(
        ["--report_to", "none", *words]
    )
    return args


def test_command_line(tmp_path):
    args = parse(
        *("--output_dir", str(tmp_path), "--editor", "adam", "--edit_learning_rate", "3e-4"),
        *("--edit_layers", "layers.0", "*fc2*", "--learn_edit_learning_rate"),
        *("--edit_max_steps", "7", "--edit_coef", "0.5", "--base_loss", "distillation", "--learning_rate", "1e-2"),
        *("--max_tokens_per_batch", "4096", "--edit_length_penalty", "1.0"),
    )
    assert args.output_dir == str(tmp_path)
    assert (args.editor, args.edit_learning_rate, args.learning_rate) == ("adam", 3e-4, 1e-2)
    assert args.edit_layers == ["layers.0", "*fc2*"]
    assert args.learn_edit_learning_rate
    assert (args.edit_max_steps, args.edit_coef, args.base_loss) == (7, 0.5, "distillation")
    assert (args.max_tokens_per_batch, args.edit_length_penalty) == (4096, 1.0)


def test_defaults_are_the_papers_and_the_parents(tmp_path):
    args = parse("--output_dir", str(tmp_path))
    assert (args.editor, args.edit_learning_rate, args.edit_layers) == ("rmsprop", 1e-3, ["last_decoder_layer"])
    assert not args.learn_edit_learning_rate
    parent = Seq2SeqTrainingArguments(str(tmp_path), report_to="none")
    changed = {name for name, value in vars(parent).items() if getattr(args, name) != value}
    assert changed <= {"ddp_find_unused_parameters", "logging_dir", "distributed_state"}


def test_output_dir_is_the_first_positional_argument(tmp_path):
    assert EditableSeq2SeqTrainingArguments(str(tmp_path), report_to="none").output_dir == str(tmp_path)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has a GPU")
@pytest.mark.parametrize("kind", [EditableSeq2SeqTrainingArguments, EditableImageTrainingArguments])
def test_bf16_without_a_gpu_is_bf16_on_the_cpu(kind, tmp_path):
    args = kind(str(tmp_path), report_to="none", bf16=True)
    assert args.use_cpu and args.device.type == "cpu"
    assert not kind(str(tmp_path), report_to="none").use_cpu


def test_list_defaults_are_not_shared(tmp_path):
    first, second = (EditableSeq2SeqTrainingArguments(str(tmp_path), report_to="none") for _ in range(2))
    first.edit_layers.append("encoder")
    assert second.edit_layers == ["last_decoder_layer"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"editor": "sgd"}, "Unknown `editor` 'sgd'. Choose one of: gd, scaled_gd, rprop, rmsprop, momentum, adam"),
        ({"base_loss": "kl"}, "`base_loss` must be one of task, distillation, got 'kl'"),
        ({"edit_coef": -0.1}, "`edit_coef` must be 0 or more, got -0.1"),
        ({"locality_coef": -1.0}, "`locality_coef` must be 0 or more, got -1.0"),
        ({"edit_max_steps": 0}, "`edit_max_steps` must be 1 or more, got 0"),
        ({"edits_per_step": 0}, "`edits_per_step` must be 1 or more, got 0"),
        ({"edits_at_once": 0}, "`edits_at_once` must be 1 or more, got 0"),
        ({"edit_layers": []}, "`edit_layers` is empty"),
        ({"max_tokens_per_batch": -1}, "`max_tokens_per_batch` must be 0 or more, got -1"),
        ({"edit_learning_rate": 0.0}, "`edit_learning_rate` must be more than 0, got 0.0"),
        ({"hyperparameter_learning_rate": -1.0}, "`hyperparameter_learning_rate` must be 0 or more, got -1.0"),
    ],
)
def test_bad_values_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        EditableSeq2SeqTrainingArguments(str(tmp_path), report_to="none", **options)


def test_parents_checks_still_run(tmp_path):
    with pytest.raises(ValueError, match="load_best_model_at_end"):
        EditableSeq2SeqTrainingArguments(
            str(tmp_path), report_to="none", load_best_model_at_end=True, eval_strategy="steps", save_strategy="epoch"
        )
