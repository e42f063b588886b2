"""An edit as a small file: `patch.safetensors`, `patch.json` and a model card."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from editable_hf.core.editing import EditResult
from editable_hf.core.editors import LearnableEditor
from editable_hf.data.atomic import write_atomically
from editable_hf.data.json_fields import check_fields, read_object
from editable_hf.patches.card import patch_card
from editable_hf.patches.encoding import (
    TouchedTensor,
    changed_tensors,
    encode_tensors,
    fingerprint,
    known_encoding,
    short,
)
from editable_hf.patches.format import AGAIN, CARD_NAME, PATCH_FIELDS, PATCH_NAME, PAYLOAD_NAME
from editable_hf.patches.hub import checked_base_model, download_patch, upload_patch
from editable_hf.patches.record import applied_patches
from editable_hf.seams.torch_seam import uncompiled
from editable_hf.training.editor_config import EditorConfig
from editable_hf.versions import library_versions

logger = logging.getLogger(__name__)

_FORMAT = 1
# In `patch.json` besides the fields of `Patch`; all of them follow from the rest.
_DERIVED = ("format", "fingerprint", "base_fingerprint", "edited_fingerprint", "payload")


@dataclass(frozen=True)
class Patch:
    """An edit as a file: apply it, take it back bit for bit, stack it on others, share it.

    Make one with [`Patch.from_edit`], read one with [`Patch.from_pretrained`]; [`apply_patches`] and
    [`revert_patches`] use them. Nothing in a patch is code, and loading it runs none.

    Attributes:
        tensors: The parameters that are not bit for bit the same with the patch, by qualified name.
        payload: `patch.safetensors`, the differences.
        encoding: `xor` or `bf16`, see [`Patch.from_edit`].
        model_class: Class of the model, e.g. "MarianMTModel".
        base_model: Hub id of the model; `None` if it is on no hub.
        layers: What could move, as given to [`edit`].
        editor: `name` and `hyperparameters`.
        inputs: As the model was addressed, see [`EditorConfig`]; empty for plain text and images.
        request: What the edit is for; what JSON can hold.
        num_steps: Gradient steps taken.
        l_e_before: The constraint without the edit; `None` if it was not finite.
        l_e_after: With it.
        success: Whether `l_e <= 0` holds with it.
        verified: Whether decoding the edited model gave the target; `None` if nobody looked.
        metrics: Whatever was measured, e.g. the drawdown.
        parent: Fingerprint of the patch that was on top when the edit was made; `None` without patches.
        rounding: Of `bf16`: how far the patched tensors are from the edited ones, `max_abs_error`, and
            `relative_error`, the length of all errors by the length of the edit. What `success` and `verified` say
            was measured before rounding. `None` for `xor`.
        versions: Of the libraries that made it.
    """

    tensors: dict[str, TouchedTensor]
    payload: bytes = field(repr=False)
    encoding: str
    model_class: str
    base_model: str | None
    layers: list[str]
    editor: dict[str, Any]
    request: Any
    num_steps: int
    l_e_before: float | None
    l_e_after: float | None
    success: bool
    verified: bool | None
    metrics: dict[str, Any]
    parent: str | None
    rounding: dict[str, float] | None
    versions: dict[str, str]
    inputs: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_edit(
        cls,
        model: PreTrainedModel,
        result: EditResult,
        *,
        request: Any,
        editor: EditorConfig | LearnableEditor,
        layers: str | Iterable[str],
        base_model: str | None = None,
        metrics: Mapping[str, Any] | None = None,
        verified: bool | None = None,
        parent: Patch | str | None = None,
        encoding: str = "xor",
    ) -> Patch:
        """The patch that turns `model` as it stands into the edited model.

        Args:
            model: The model that was edited, before the edit is applied to it.
            result: From [`edit`].
            request: What the edit is for, one request or a list: strings, numbers, lists and dicts.
            editor, layers: The editor with its values, and what it could move.
            base_model: Hub id of the model. By default the id it was loaded from, if that is one and no folder.
            metrics: Whatever was measured; must be JSON.
            verified: Whether decoding gave the target.
            parent: The patch, or its fingerprint, that must be there before this one. By default the last that the
                model carries, see [`applied_patches`].
            encoding: `xor` gives the edited parameters bit for bit. `bf16` rounds the difference to bfloat16: for
                a float32 model half the size, and `rounding` states the loss. Both are taken back bit for bit.

        Raises:
            TypeError: If `editor`, `request` or `metrics` cannot be written down.
            ValueError: If the edit is not one of this model or changes nothing, or the encoding cannot hold it.

        Example:
            >>> result = edit(model, constraint, config.build_editor(), config.layers)  # doctest: +SKIP
            >>> patch = Patch.from_edit(model, result, request=fix, editor=config, layers="*")  # doctest: +SKIP
            >>> patch.save_pretrained("fixes/ana-likes-tea")  # doctest: +SKIP
        """
        model = uncompiled(model)
        tensors, payload, rounding = encode_tensors(changed_tensors(model, result.params), encoding)
        return cls(
            tensors=tensors,
            payload=payload,
            encoding=encoding,
            model_class=type(model).__name__,
            base_model=checked_base_model(base_model, model.config.name_or_path),
            layers=[layers] if isinstance(layers, str) else list(layers),
            editor=_editor_values(editor),
            request=_as_json("request", request),
            num_steps=result.num_steps,
            l_e_before=_finite(result.history[0]),
            l_e_after=_finite(result.history[-1]),
            success=bool(result.success),
            verified=verified,
            metrics=_as_json("metrics", dict(metrics or {})),
            parent=_parent(model, parent),
            rounding=rounding,
            versions=library_versions(),
            inputs=dict(editor.inputs) if isinstance(editor, EditorConfig) else {},
        )

    @property
    def fingerprint(self) -> str:
        """sha256 that names the patch: over the touched tensors before and after it, its encoding and its parent."""
        tensors = {name: asdict(touched) for name, touched in self.tensors.items()}
        content = json.dumps([_FORMAT, self.encoding, self.parent, tensors], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def base_fingerprint(self) -> str:
        """Fingerprint of the touched tensors without the patch."""
        return fingerprint({name: touched.before for name, touched in self.tensors.items()})

    @property
    def edited_fingerprint(self) -> str:
        """Fingerprint of the touched tensors with the patch."""
        return fingerprint({name: touched.after for name, touched in self.tensors.items()})

    @property
    def num_parameters(self) -> int:
        """How many numbers the touched tensors hold."""
        return sum(math.prod(touched.shape) for touched in self.tensors.values())

    def to_json(self) -> str:
        """The content of `patch.json`."""
        payload = {"sha256": hashlib.sha256(self.payload).hexdigest(), "bytes": len(self.payload)}
        derived = (_FORMAT, self.fingerprint, self.base_fingerprint, self.edited_fingerprint, payload)
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "payload"}
        tensors = {name: asdict(each) for name, each in self.tensors.items()}
        content = {**dict(zip(_DERIVED, derived, strict=True)), **own, "tensors": tensors}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Writes `patch.safetensors`, `patch.json` and `README.md`.

        Raises:
            ValueError: If the folder holds another patch or another model card. Nothing is overwritten.
        """
        folder = Path(save_directory)
        if folder.joinpath(PATCH_NAME).exists():
            other = _saved_fingerprint(folder / PATCH_NAME)
            if other != self.fingerprint:
                raise ValueError(
                    f"Expected a new folder, or one with this patch ({short(self.fingerprint)}), but {folder} holds "
                    f"patch {short(other)}; save to another folder, or delete that one first."
                )
        elif folder.joinpath(CARD_NAME).exists():
            raise ValueError(
                f"Expected a new folder for the patch, but {folder} holds the {CARD_NAME} of something else; save to "
                "a folder of its own."
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files().items():
            write_atomically(folder / name, content)

    def _files(self, repo_id: str | None = None) -> dict[str, bytes]:
        """What a saved patch consists of. `patch.json` follows the payload: an interrupted save is no patch."""
        card = patch_card(self, repo_id)
        return {PAYLOAD_NAME: self.payload, PATCH_NAME: self.to_json().encode(), CARD_NAME: card.encode()}

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Uploads the patch in one commit, to a new repository or one that holds a patch. Nothing local is touched.

        Args:
            repo_id: `user/name`, or `name` for your own.
            private: For a new repository; by default as the account has it.
            token: By default the one you are logged in with.
            commit_message: By default it names the patch.

        Returns:
            URL of the commit.

        Raises:
            OSError: `ConnectionError` without a network, `PermissionError` if the token may not write there.
            ValueError: If the repository holds something that is no patch.
        """
        message = commit_message or f"Upload patch {short(self.fingerprint)}"
        return upload_patch(self._files, repo_id, private, token, message)

    @classmethod
    def from_pretrained(
        cls, patch: str | os.PathLike, revision: str | None = None, token: str | bool | None = None
    ) -> Patch:
        """Reads a patch from a folder or the hub, and checks that it is whole.

        Args:
            patch: Folder or hub id.
            revision: Branch, tag or commit on the hub.
            token: By default the one you are logged in with.

        Raises:
            OSError: If the hub cannot be reached, or has no such repository for this token.
            ValueError: If it is no patch, is damaged or was written by a later version.
        """
        folder = Path(patch)
        if not folder.is_dir():
            folder = download_patch(str(patch), revision, token)
        try:
            content = read_object(folder / PATCH_NAME, AGAIN)
            payload = folder.joinpath(PAYLOAD_NAME).read_bytes()
        except FileNotFoundError as error:
            raise ValueError(
                f"Expected {PATCH_NAME} and {PAYLOAD_NAME} in {patch}, but {Path(error.filename).name} is missing; "
                "give the folder or hub id of a patch, or save it again."
            ) from error
        try:
            return cls._parse(content, payload, str(patch))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{PATCH_NAME} in {patch} is damaged ({type(error).__name__}: {error}); {AGAIN}."
            ) from error

    @classmethod
    def _parse(cls, content: dict[str, Any], payload: bytes, where: str) -> Patch:
        check_fields(content, PATCH_FIELDS, f"{PATCH_NAME} in {where}", AGAIN)
        if content["format"] > _FORMAT:
            raise ValueError(
                f"{where} has format {content['format']}, and this version of editable_hf reads {_FORMAT}; upgrade it."
            )
        names = {each.name for each in fields(cls)} - {"payload"}
        unknown = sorted(set(content) - names - set(_DERIVED))
        if unknown:
            logger.warning("%s has keys this version does not know and ignores: %s", where, ", ".join(unknown))
        values = {name: content[name] for name in names - {"inputs"}}
        values["inputs"] = content.get("inputs", {})  # patches of before have none
        values["tensors"] = {name: TouchedTensor(**each) for name, each in content["tensors"].items()}
        patch = cls(**values, payload=payload)
        known_encoding(patch.encoding)
        sums = {PAYLOAD_NAME: hashlib.sha256(payload).hexdigest(), PATCH_NAME: patch.fingerprint}
        for file, expected in {PAYLOAD_NAME: content["payload"]["sha256"], PATCH_NAME: content["fingerprint"]}.items():
            if sums[file] != expected:
                raise ValueError(
                    f"{file} in {where} is damaged: expected sha256 {short(expected)}, found {short(sums[file])}; "
                    "download or save the patch again."
                )
        return patch


def _parent(model: PreTrainedModel, parent: Patch | str | None) -> str | None:
    stack = applied_patches(model)
    if parent is None:
        return stack[-1] if stack else None
    return parent.fingerprint if isinstance(parent, Patch) else parent


def _saved_fingerprint(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"])
    except (ValueError, KeyError, TypeError):
        return "(damaged)"


def _editor_values(editor: EditorConfig | LearnableEditor) -> dict[str, Any]:
    if isinstance(editor, EditorConfig):
        return {"name": editor.editor, "hyperparameters": dict(editor.hyperparameters)}
    if isinstance(editor, LearnableEditor):
        return {"name": editor.name, "hyperparameters": editor.values()}
    raise TypeError(
        f"Expected `editor` as an EditorConfig or a LearnableEditor, which know their values, got "
        f"{type(editor).__name__}; for `rmsprop(1e-3)` give `LearnableEditor('rmsprop', learning_rate=1e-3)`."
    )


def _as_json(name: str, value: Any) -> Any:
    """A copy as JSON gives it back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Expected `{name}` of strings, finite numbers, booleans, lists and dicts, which JSON can hold, but "
            f"{error}; describe an image by its file name or index, and turn tensors into lists or numbers."
        ) from error


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
