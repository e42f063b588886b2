"""What the commands of `editable-hf` do: each returns what it found, as JSON can hold it, and prints nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
)

import editable_hf.baselines  # noqa: F401  # so that the Auto classes know its models
from editable_hf.core.constraints import ClassConstraint
from editable_hf.core.continuations import joined
from editable_hf.core.editing import EditResult, constraint_value, edit
from editable_hf.core.parts import LAST_BLOCK, LAST_DECODER_LAYER, LAST_DECODER_MLP, is_decoder_only, num_chains
from editable_hf.data.continuations import chat_prompt, check_decoder_only
from editable_hf.data.image_sources import list_image_folder
from editable_hf.data.image_transforms import decode_image
from editable_hf.data.languages import set_languages
from editable_hf.data.requests import make_edit_requests, read_corrections
from editable_hf.data.sentences import read_sentences
from editable_hf.data.text_lines import read_lines
from editable_hf.evaluation.verified_edit import decode, decoding_length_penalty, joint_constraint
from editable_hf.patches.making import configured_edit, patch_of
from editable_hf.patches.patch import Patch
from editable_hf.patches.record import applied_patches
from editable_hf.patches.stack import apply_patches, patched_parameters
from editable_hf.review.health import health_of_stack
from editable_hf.review.review import Review
from editable_hf.review.terms import terms_of
from editable_hf.training.editor_config import EditorConfig


class Loaded(NamedTuple):
    """A model with what it reads: a tokenizer, or an image processor."""

    model: PreTrainedModel
    processor: Any
    editor: EditorConfig
    trained_editable: bool

    @property
    def writes(self) -> bool:
        """Whether the model writes text; the others classify images."""
        return self.model.can_generate()

    def addressed(self, sources: Sequence[str]) -> list[str]:
        """Sources as the model is to read them: with its prefix, or as a user's words to a chat model."""
        inputs = self.editor.inputs
        texts = [inputs.get("source_prefix", "") + source for source in sources]
        return [chat_prompt(self.processor, text) for text in texts] if "chat" in inputs else texts


def load(
    name: str,
    patches: Sequence[str | Patch] = (),
    inputs: Mapping[str, str | None] | None = None,
    remembered: Sequence[Patch] = (),
) -> Loaded:
    """A model that writes text or classifies images, from a folder or the hub, with patches applied.

    A model that was not trained to be editable gets RMSProp on its last decoder layer, of a decoder-only model the
    feed-forward part of it; a ResNet or DenseNet on its third chain, other image classifiers on their last block.

    `inputs` are `source_prefix`, `source_lang` and `target_lang` to address the model with (see [`set_languages`]),
    and `chat` for prompts that a user says to a chat model (see [`chat_prompt`]); those that are `None` or left out
    are as the patches, those `remembered` or the model's `editor_config.json` say.
    `None` if the model is not to translate.

    Raises:
        OSError: If there is no such folder and the hub does not give it.
        ValueError: If the model is of another kind, or the languages are not right.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except OSError as error:
        raise OSError(
            f"Expected the folder or hub id of a model, but {name!r} gives none; check the name. {error}"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.is_encoder_decoder:
        model = AutoModelForSeq2SeqLM.from_pretrained(name)
        processor = AutoTokenizer.from_pretrained(name)
    elif type(config) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        model = AutoModelForImageClassification.from_pretrained(name)
        processor = AutoImageProcessor.from_pretrained(name)
    elif type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = AutoModelForCausalLM.from_pretrained(name)
        check_continues(model)
        processor = AutoTokenizer.from_pretrained(name)
    else:
        raise ValueError(
            f"{name} is a {config.model_type} model; encoder-decoder models, causal language models and image "
            "classifiers are edited."
        )
    saved = EditorConfig.find(name)
    layers = [_part_to_edit(model)]
    editor = saved or EditorConfig(layers=layers)
    chosen = [each if isinstance(each, Patch) else Patch.from_pretrained(each) for each in patches]
    if inputs is not None:
        for each in (*chosen, *remembered):
            editor.inputs |= each.inputs
        editor.inputs |= {key: value for key, value in inputs.items() if value is not None}
        if config.is_encoder_decoder:
            set_languages(model, processor, *(editor.inputs.get(key) for key in ("source_lang", "target_lang")))
        if "chat" in editor.inputs and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"`--chat` is for causal language models, but {name} is a {config.model_type} model.")
    model = apply_patches(model.to(device).eval(), chosen)
    return Loaded(model, processor, editor, saved is not None)


def check_translates(loaded: Loaded, name: str) -> None:
    """Raises `ValueError` if the model `name` has no encoder."""
    if not loaded.model.config.is_encoder_decoder:
        raise ValueError(
            f"Expected an encoder-decoder model that translates, but {name} is a {type(loaded.model).__name__}."
        )


def check_continues(model: PreTrainedModel) -> None:
    """Raises `ValueError` if the model does not continue a prompt."""
    try:
        check_decoder_only(model)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _part_to_edit(model: PreTrainedModel) -> str:
    if model.can_generate():
        return LAST_DECODER_LAYER if model.config.is_encoder_decoder else LAST_DECODER_MLP
    return "chain3" if num_chains(model) >= 3 else LAST_BLOCK


class EditOutcome(NamedTuple):
    """An edit and the patch made of it; `None` where it changed nothing or failed."""

    result: EditResult
    patch: Patch | None
    verified: bool
    outputs: list[str]
    num_rounds: int


def edit_texts(
    loaded: Loaded,
    requests: str | Sequence[tuple[str, str]],
    *,
    max_rounds: int,
    num_alternatives: int,
    **options: Any,
) -> EditOutcome:
    """One patch for all of `requests`, a JSONL file or pairs of source and target; see [`configured_edit`]."""
    model, tokenizer, config = loaded.model, loaded.processor, loaded.editor
    sources, targets = read_corrections(requests) if isinstance(requests, str) else zip(*requests, strict=True)
    rows = make_edit_requests(
        model,
        tokenizer,
        loaded.addressed(sources),
        targets=targets,
        num_alternatives=num_alternatives,
        progress=None,
    )
    outcome = configured_edit(model, tokenizer, list(rows), config, max_rounds)
    patch = patch_of(model, outcome, config, **options)
    return EditOutcome(outcome.result, patch, outcome.all_verified, outcome.outputs, outcome.num_rounds)


def edit_images(loaded: Loaded, paths: Sequence[str], target: str, **options: Any) -> EditOutcome:
    """One patch that gives all images the class `target`, a name or a number."""
    model, config = loaded.model, loaded.editor
    label = class_of(model, target)
    constraints = [ClassConstraint({"pixel_values": pixels(loaded, path)}, label) for path in paths]
    result = edit(model, joined(constraints), config.build_editor(), config.layers, config.max_steps)
    request = [{"image": Path(path).name, "target": label, "name": class_name(model, label)} for path in paths]
    patch = None
    if result.success and result.num_steps > 0:
        patch = Patch.from_edit(
            model, result, request=request, editor=config, layers=config.layers, verified=True, **options
        )
    return EditOutcome(result, patch, result.success, [class_name(model, label)] * len(paths), 1)


def pixels(loaded: Loaded, path: str) -> Tensor:
    """What the model sees of an image file, `(1, channels, height, width)`."""
    inputs = loaded.processor(decode_image({"path": str(path), "bytes": None}), return_tensors="pt")
    return inputs["pixel_values"].to(loaded.model.device, loaded.model.dtype)


def class_of(model: PreTrainedModel, target: str) -> int:
    """The class of a name or a number.

    Raises:
        ValueError: If the model has no such class.
    """
    names = {str(name): int(label) for label, name in model.config.id2label.items()}
    if target in names:
        return names[target]
    if target.isdecimal() and int(target) < model.config.num_labels:
        return int(target)
    some = ", ".join(list(names)[:5])
    raise ValueError(
        f"The model has no class {target!r}; give a number below {model.config.num_labels} or a name: {some}, ..."
    )


def class_name(model: PreTrainedModel, label: int) -> str:
    return str(model.config.id2label[label])


class ImageRows(torch.utils.data.Dataset):
    """The images of a folder with a folder for each class, as the model sees them."""

    def __init__(self, loaded: Loaded, folder: str):
        self._loaded = loaded
        classes = list_image_folder(Path(folder))
        self.files = [(path, class_of(loaded.model, name)) for name, paths in classes.items() for path in paths]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, label = self.files[index]
        return {"pixel_values": pixels(self._loaded, path)[0].cpu(), "labels": label}


def review(loaded: Loaded, patches: Sequence[Patch], data: str, **options: Any) -> Review:
    """What `patches`, together, change over a regression set: a file of sentences, or a folder of images."""
    model, chosen = loaded.model, list(patches)
    params = patched_parameters(model, chosen)
    options |= {"regression_set": data}
    if loaded.writes:
        from editable_hf.review.continuations import review_continuations  # late: sacrebleu takes its time
        from editable_hf.review.translations import review_translations

        sources, references = read_sentences(data)
        edited = [each["source"] for patch in chosen for each in patch.request]
        options |= {"edited_sources": edited, "progress": "decoding"}
        sources = loaded.addressed(sources)
        if is_decoder_only(model):
            return review_continuations(model, loaded.processor, params, sources, references, **options)
        options["terms"] = [term for patch in chosen for term in terms_of(patch.metrics)]
        return review_translations(model, loaded.processor, params, sources, references, **options)
    from editable_hf.review.images import review_images

    rows = ImageRows(loaded, data)
    pictures = [{"path": path, "bytes": None} for path, _ in rows.files]
    return review_images(model, params, rows, pictures=pictures, **options)


def check_patches(loaded: Loaded, patches: Sequence[Patch]) -> list[dict[str, Any]]:
    """Whether what each patch is for still holds in a model that carries them all."""
    states = []
    for patch in patches:
        state = {"patch": patch.fingerprint, "success": None, "verified": None}
        if loaded.writes:
            penalty = decoding_length_penalty(loaded.model)
            constraint = joint_constraint(patch.request, loaded.model, penalty)
            success = constraint_value(loaded.model, constraint) <= 0
            outputs = [decode(loaded.model, loaded.processor, request) for request in patch.request]
            wanted = [request["labels"] for request in patch.request]
            state |= {"success": success, "verified": outputs == wanted}
        states.append(state)
    return states


def health(loaded: Loaded, patches: Sequence[str], text: str, **bounds: float | None) -> dict[str, Any]:
    """The state of a language model after each patch, on a file of text, until one leaves the bounds."""
    check_continues(loaded.model)
    lines = [line for line in read_lines(Path(text)) if line.strip()]
    states = health_of_stack(loaded.model, loaded.processor, patches, lines, **bounds)
    return {"healthy": states[-1].healthy, "states": [state._asdict() for state in states]}


def save_model(loaded: Loaded, folder: str) -> None:
    """Writes the model as it stands, its tokenizer or image processor, and its editor.

    Raises:
        ValueError: If the folder holds something.
    """
    path = Path(folder)
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder.")
    loaded.model.save_pretrained(path)
    loaded.processor.save_pretrained(path)
    if loaded.trained_editable:
        loaded.editor.save_pretrained(path)


def describe_patch(name: str) -> dict[str, Any]:
    patch = Patch.from_pretrained(name)
    return {
        "patch": name,
        "fingerprint": patch.fingerprint,
        "base_model": patch.base_model,
        "model_class": patch.model_class,
        "num_steps": patch.num_steps,
        "success": patch.success,
        "verified": patch.verified,
        "encoding": patch.encoding,
        "bytes": len(patch.payload),
        "request": patch.request,
    }


def describe_model(name: str) -> dict[str, Any]:
    loaded = load(name)
    return {
        "model": name,
        "patches": applied_patches(loaded.model),
        "editor": loaded.editor.editor,
        "layers": loaded.editor.layers,
    }
