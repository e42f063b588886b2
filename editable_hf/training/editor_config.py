"""`editor_config.json`: what an editable checkpoint knows about its own editor."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from editable_hf.core.editors import EDITORS, Editor, LearnableEditor
from editable_hf.data.atomic import write_atomically
from editable_hf.data.json_fields import COUNT, NAMES, NUMBER, NUMBERS, TEXT, TEXTS, check_fields, read_object
from editable_hf.version import __version__

logger = logging.getLogger(__name__)

EDITOR_CONFIG_NAME = "editor_config.json"


@dataclass
class EditorConfig:
    """How to edit a checkpoint the way it was trained to be edited.

    Args:
        editor: Name of the editor, a key of `EDITORS`.
        hyperparameters: Its values, learned or fixed.
        layers: What an edit may move, as given to `select_parameters`.
        max_steps: k in Eq. 1.
        length_penalty: Exponent of the length normalization in `l_e`, for sequence models.
        inputs: How the model is addressed, where that is not plain text: `source_prefix` (T5), `source_lang` and
            `target_lang` (NLLB), `chat` (a chat model, by what a user says). The commands of `editable-hf` go by it.
        learned: The unconstrained parameters of `LearnableEditor`, so that training resumes exactly.
        library_version: Version of `editable_hf` that wrote the file.
    """

    editor: str = "rmsprop"
    hyperparameters: dict[str, float] = field(default_factory=lambda: {"learning_rate": 1e-3, "beta": 0.5})
    layers: list[str] = field(default_factory=lambda: ["last_decoder_layer"])
    max_steps: int = 10
    length_penalty: float = 0.0
    inputs: dict[str, str] = field(default_factory=dict)
    learned: dict[str, float] = field(default_factory=dict)
    library_version: str = __version__

    @classmethod
    def of(cls, editor: LearnableEditor, layers: list[str], max_steps: int) -> EditorConfig:
        """The configuration of `editor` as it stands.

        One that is a model's own (Editable+CNP) says itself how many steps it takes, and is saved with the weights.
        """
        if not isinstance(editor, LearnableEditor):
            return cls(editor.name, editor.values(), layers, editor.max_steps)
        learned = {name: parameter.item() for name, parameter in editor.named_parameters()}
        return cls(editor.name, editor.values(), layers, max_steps, learned=learned)

    def build_editor(self, **overrides: float) -> Editor:
        """The editor with these hyperparameters, as plain numbers.

        Args:
            overrides: Hyperparameters to use instead of the saved ones, e.g. `learning_rate=3e-4`.

        Raises:
            ValueError: If the editor is a part of the model (Editable+CNP).
        """
        if self.editor not in EDITORS:
            raise ValueError(
                f"The editor {self.editor!r} is no gradient editor ({', '.join(EDITORS)}): it is a part of the model. "
                "Load the model and take `model.editor.build()`."
            )
        values = {**self.hyperparameters, **overrides}
        return LearnableEditor(self.editor, learn_learning_rate=False, learn_decays=False, **values).build()

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes `editor_config.json` into the folder `save_directory`."""
        write_atomically(Path(save_directory, EDITOR_CONFIG_NAME), json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike, revision: str | None = None) -> EditorConfig:
        """Reads the editor of a checkpoint folder or hub model that was trained to be editable.

        Raises:
            FileNotFoundError: If it was not: there is no `editor_config.json`.
            ValueError: If the file is not valid JSON, or holds something else than such a configuration.
        """
        config = cls.find(model, revision)
        if config is None:
            raise FileNotFoundError(
                f"{model} has no {EDITOR_CONFIG_NAME}: it was not trained to be editable. `EditorConfig()` is the "
                "paper's editor, which edits any model."
            )
        return config

    @classmethod
    def find(cls, model: str | os.PathLike, revision: str | None = None) -> EditorConfig | None:
        """As [`from_pretrained`], but `None` for a model that was not trained to be editable."""
        path = Path(model, EDITOR_CONFIG_NAME)
        if not Path(model).is_dir():
            from transformers.utils import cached_file  # a hub id; the import takes long and folders do not need it

            found = cached_file(
                str(model), EDITOR_CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
            )
            if found is None:
                return None
            path = Path(found)
        if not path.exists():
            return None
        content = read_object(path, _AGAIN)
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(content) - known)
        if unknown:
            logger.warning(
                "%s has keys this version (%s) does not know and ignores: %s", path, __version__, ", ".join(unknown)
            )
        check_fields(content, _EXPECTED, str(path), _AGAIN)
        return cls(**{key: value for key, value in content.items() if key in known})


_AGAIN = "download or save the checkpoint again"
_EXPECTED = {
    "editor": TEXT,
    "hyperparameters": NUMBERS,
    "layers": NAMES,
    "max_steps": COUNT,
    "length_penalty": NUMBER,
    "inputs": TEXTS,
    "learned": NUMBERS,
    "library_version": TEXT,
}
