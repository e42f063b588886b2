from __future__ import annotations

import pytest
from tiny_images import image_requests, image_rows, tiny_resnet, tiny_vit
from transformers import HfArgumentParser, TrainingArguments

from editable_hf import EditableImageTrainingArguments

# What is refused


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (tiny_resnet, {"edit_dataset": []}, "`edit_dataset` is empty; leave it out to train without edits"),
        (
            tiny_resnet,
            {"edit_dataset": image_rows(2)},
            r"`pixel_values` and `target` \(or `rank`\), got \['labels', 'pixel_values'\].*`ImageEditRequests`",
        ),
        (tiny_resnet, {"edit_dataset": [{"target": 3}]}, r"must give rows with `pixel_values`.*got \['target'\]"),
        (
            tiny_resnet,
            {"extra_learning_rate": 1e-3},
            "`extra_learning_rate` is 0.001, but CifarResNetForImageClassification has no extra block. Leave it unset",
        ),
        (tiny_resnet, {"edit_layers": ["chain4"]}, "has no 'chain4'; its chains are chain1 to chain3"),
        (tiny_vit, {}, "'chain3' means nothing for it; name the layers"),
        (tiny_resnet, {"ddp_find_unused_parameters": True}, "`ddp_find_unused_parameters=True` is not supported"),
    ],
)
def test_refused_at_construction(make_image_trainer, build, options, message):
    with pytest.raises(ValueError, match=message):
        make_image_trainer(build(), **{"edit_dataset": image_requests(), **options})


def test_class_that_the_model_does_not_have(make_image_trainer):
    trainer = make_image_trainer(tiny_resnet(), edit_dataset=[{**image_requests(1)[0], "target": 5}])
    with pytest.raises(ValueError, match="`target` must be a class from 0 to 4, got 5"):
        trainer.train()


# Arguments


def test_command_line_and_defaults(tmp_path):
    parser = HfArgumentParser(EditableImageTrainingArguments)
    words = ["--output_dir", str(tmp_path), "--report_to", "none"]
    (args,) = parser.parse_args_into_dataclasses(words)
    assert (args.edit_layers, args.edit_coef, args.locality_coef) == (["chain3"], 0.01, 0.01)
    assert (args.extra_learning_rate, args.remove_unused_columns) == (None, False)
    parent = TrainingArguments(str(tmp_path), report_to="none")
    changed = {name for name, value in vars(parent).items() if getattr(args, name) != value}
    assert changed <= {"ddp_find_unused_parameters", "remove_unused_columns", "logging_dir", "distributed_state"}
    words += ["--edit_layers", "extra", "head", "--extra_learning_rate", "1e-3", "--learning_rate", "1e-5"]
    (args,) = parser.parse_args_into_dataclasses(words)
    assert (args.edit_layers, args.extra_learning_rate, args.learning_rate) == (["extra", "head"], 1e-3, 1e-5)
    assert EditableImageTrainingArguments(str(tmp_path), report_to="none").edit_layers == ["chain3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"extra_learning_rate": 0.0}, "`extra_learning_rate` must be more than 0, got 0.0"),
        ({"edit_coef": -1.0}, "`edit_coef` must be 0 or more, got -1.0"),
        ({"base_loss": "kl"}, "`base_loss` must be one of task, distillation, got 'kl'"),
        ({"edit_layers": []}, "`edit_layers` is empty"),
    ],
)
def test_bad_values_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        EditableImageTrainingArguments(str(tmp_path), report_to="none", **options)
