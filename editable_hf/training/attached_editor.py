"""The editor as a part of the model that is trained: `model.editor`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import fields

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from transformers import PreTrainedModel, TrainerCallback

from editable_hf.core.editors import LearnableEditor
from editable_hf.core.selection import select_parameters
from editable_hf.seams.transformers_seam import leave_out_of_weight_files
from editable_hf.training.arguments import EditableArguments
from editable_hf.training.editor_config import EDITOR_CONFIG_NAME, EditorConfig


def editable_names(model: PreTrainedModel, layers: Iterable[str]) -> list[str]:
    """Names of the parameters that edits move.

    A model that was trained before still has its editor, which "*" would select.
    """
    return [name for name in select_parameters(model, layers) if not name.startswith("editor.")]


def attach_editor(model: PreTrainedModel, args: EditableArguments) -> None:
    """Makes the editor a submodule of `model`, so that the optimizer and DDP see its values.

    Weight files hold the ordinary model alone all the same: plain `from_pretrained` must load them without a warning.
    A model that has an editor of another kind (Editable+CNP) keeps it, as a part of the model like any other.

    Raises:
        ValueError: If the arguments ask such a model for another editor or other layers.
    """
    if has_own_editor(model):
        _check_own_editor(model, args)
        return
    editor = LearnableEditor(args.editor, args.learn_edit_learning_rate, learning_rate=args.edit_learning_rate)
    model.editor = editor.to(model.device)
    names = {f"editor.{name}" for name, _ in editor.named_parameters()}
    leave_out_of_weight_files(model, names)


def has_own_editor(model: PreTrainedModel) -> bool:
    """Whether edits of the model are made by a part of the model itself, not by gradient steps."""
    return not isinstance(getattr(model, "editor", None), LearnableEditor | None)


def _check_own_editor(model: PreTrainedModel, args: EditableArguments) -> None:
    kind, layers = type(model).__name__, list(model.editor.layers)
    if list(args.edit_layers) != layers:
        raise ValueError(
            f"A {kind} is edited by its own editor: expected `edit_layers` {layers}, got {args.edit_layers}."
        )
    if args.edits_at_once != 1:
        raise ValueError(f"A {kind} is edited for one request at a time: expected `edits_at_once` 1.")
    # Not `edit_max_steps`, an upper bound: these editors take fewer.
    names = ("editor", "edit_learning_rate", "learn_edit_learning_rate")
    given = [each.name for each in fields(args) if each.name in names and getattr(args, each.name) != each.default]
    if given:
        raise ValueError(
            f"A {kind} has its own editor, without these hyperparameters; leave unset: {', '.join(given)}."
        )


def separate_group(
    optimizer: Optimizer, parameters: Iterable[Parameter], learning_rate: float, weight_decay: float = 0.0
) -> Optimizer:
    """Gives `parameters` a group of their own in `optimizer`, which is returned, unless they have one or are empty.

    Also in an optimizer that the user made before the editor existed.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    own = {id(parameter) for parameter in parameters}
    if not own or any({id(parameter) for parameter in group["params"]} == own for group in optimizer.param_groups):
        return optimizer
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
    optimizer.add_param_group({"params": parameters, "lr": learning_rate, "weight_decay": weight_decay})
    return optimizer


class EditorWithPushes(TrainerCallback):
    """Writes `editor_config.json` to what is pushed during training (`push_to_hub=True`).

    `Trainer` takes the weights of its last checkpoint there, but no file that it does not know.

    Args:
        config: Gives the editor as it stands.
    """

    def __init__(self, config: Callable[[], EditorConfig]):
        self._config = config

    def on_push_begin(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero:
            self._config().save_pretrained(args.output_dir)


def restore_editor(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Gives the editor of `model` the values that the checkpoint in `folder` had learned.

    One that is the model's own came back with the weights.

    Raises:
        ValueError: If the checkpoint did not learn the same values.
    """
    if has_own_editor(model):
        return
    config = EditorConfig.find(folder)
    parameters, learned = dict(model.editor.named_parameters()), {} if config is None else config.learned
    if set(learned) != set(parameters):
        raise ValueError(
            f"The editor of this run learns {sorted(parameters)}, but the checkpoint {folder} holds {sorted(learned)} "
            f"({'no ' if config is None else ''}{EDITOR_CONFIG_NAME}); resume with the same `editor` "
            "and `learn_edit_learning_rate`, or start a new run from its weights."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.fill_(learned[name])
