"""Patches applied to a model one above the other, and taken back in reverse order, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from editable_hf.patches.encoding import describe, digest, moved_tensors, short
from editable_hf.patches.patch import Patch
from editable_hf.patches.record import RECORD, applied_patches, recorded_tensors, write_record
from editable_hf.seams.torch_seam import uncompiled

PatchLike = Patch | str | os.PathLike  # a patch, its folder or its hub id


def apply_patches(model: PreTrainedModel, patches: PatchLike | Sequence[PatchLike]) -> PreTrainedModel:
    """Applies patches to `model`, in place and in the order given.

    Everything is checked and computed before the first parameter changes, and a failure while they are written puts
    all of them back. No other tensor is touched.

    Args:
        model: The model that the first patch was made for, in the same dtype. Its config records what is applied.
        patches: One or several: [`Patch`], folder or hub id. The model keeps them, so that they can be taken back.

    Returns:
        The same model.

    Raises:
        ValueError: If a patch is already applied, its parent is not, or the model's tensors are not bit for bit those
            that it was made for. The model is as it was.

    Example:
        >>> model = AutoModelForSeq2SeqLM.from_pretrained("me/translator")  # doctest: +SKIP
        >>> apply_patches(model, ["me/fix-1", "fixes/2"])  # doctest: +SKIP
        >>> revert_patches(model, 2)  # doctest: +SKIP
    """
    chosen, given, model = loaded_patches(patches), model, uncompiled(model)
    stack, moves = applied_patches(model), _Moves(model)
    for patch in chosen:
        if patch.fingerprint in stack:
            raise ValueError(
                f"Expected a patch that is not applied yet, but {type(model).__name__} carries "
                f"{short(patch.fingerprint)} (number {stack.index(patch.fingerprint) + 1} of {len(stack)}); leave it "
                "out, or revert it first."
            )
        if patch.parent is not None and patch.parent not in stack:
            raise ValueError(
                f"Patch {short(patch.fingerprint)} was made on top of patch {short(patch.parent)}, but the patches "
                f"below it are: {', '.join(map(short, stack)) or 'none'}; apply {short(patch.parent)} first."
            )
        moves.add(patch)
        stack.append(patch.fingerprint)
    moves.write(stack)
    _held(model).update({patch.fingerprint: patch for patch in chosen})
    return given


def revert_patches(model: PreTrainedModel, patches: int | PatchLike | Sequence[PatchLike] = 1) -> PreTrainedModel:
    """Takes the last patches back, in place and bit for bit, the last one first.

    Args:
        model: A patched model, also one that was saved and loaded since.
        patches: How many, or which: these must be the last ones applied, in whatever order they are given. A model
            that was loaded since does not hold its patches and must be given them.

    Returns:
        The same model.

    Raises:
        ValueError: If other patches lie above, or the model is not as its patches left it. The model is as it was.
    """
    given, model = model, uncompiled(model)
    stack, held = applied_patches(model), _held(model)
    if isinstance(patches, int):
        if not 0 <= patches <= len(stack):
            raise ValueError(
                f"Expected to revert between 0 and {len(stack)} patches, which is what {type(model).__name__} "
                f"carries, got {patches}."
            )
        last = stack[len(stack) - patches :]
        missing = [fingerprint for fingerprint in last if fingerprint not in held]
        if missing:
            raise ValueError(
                f"Patch {short(missing[-1])} was applied before this model was loaded, and a checkpoint does not hold "
                "its patches; give them: `revert_patches(model, [folder or hub id, ...])`."
            )
        chosen = [held[fingerprint] for fingerprint in last]
    else:
        chosen = loaded_patches(patches)
    by_fingerprint = {patch.fingerprint: patch for patch in chosen}
    last = stack[len(stack) - len(chosen) :]
    if set(by_fingerprint) != set(last) or len(last) != len(chosen):
        raise ValueError(
            "Only the last patches can be reverted. Expected some of the end of this stack, oldest first: "
            f"{', '.join(map(short, stack)) or '(no patch is applied)'}; got {', '.join(map(short, by_fingerprint))}. "
            "Revert those above first."
        )
    moves = _Moves(model)
    for fingerprint in reversed(last):
        moves.add(by_fingerprint[fingerprint], backwards=True)
    moves.write(stack[: len(stack) - len(last)])
    for fingerprint in last:
        held.pop(fingerprint, None)
    return given


def loaded_patches(patches: PatchLike | Sequence[PatchLike]) -> list[Patch]:
    """One or several patches, read where they are given by folder or hub id."""
    several = [patches] if isinstance(patches, PatchLike) else list(patches)
    return [patch if isinstance(patch, Patch) else Patch.from_pretrained(patch) for patch in several]


def _held(model: PreTrainedModel) -> dict[str, Patch]:
    """The patches that were applied in this process, by fingerprint; an attribute, so that a copied model has them."""
    if "_held_patches" not in vars(model):
        model._held_patches = {}
    return model._held_patches


def patched_parameters(model: PreTrainedModel, patches: Sequence[Patch]) -> dict[str, Tensor]:
    """The parameters that patches, together, change, with their new values; the model is left as it was."""
    apply_patches(model, patches)
    parameters = dict(model.named_parameters())
    params = {name: parameters[name].detach().clone() for patch in patches for name in patch.tensors}
    revert_patches(model, len(patches))
    return params


class _Moves:
    """Parameters as they will be, computed beside the model; nothing is written before all of it is known."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._own = dict(model.named_parameters())
        self._values: dict[str, Tensor] = {}
        self._digests: dict[str, str] = {}

    def add(self, patch: Patch, backwards: bool = False) -> None:
        """Applies `patch`, or takes it back, on top of the moves so far."""
        self._check_form(patch)
        start = {name: touched.after if backwards else touched.before for name, touched in patch.tensors.items()}
        goal = {name: touched.before if backwards else touched.after for name, touched in patch.tensors.items()}
        current = {name: self._values.get(name, self._own[name].detach()) for name in patch.tensors}
        digests = {name: self._digests.get(name) or digest(tensor) for name, tensor in current.items()}
        if digests != start:
            raise ValueError(self._wrong_base(patch, digests, start, goal))
        moved = moved_tensors(patch.payload, patch.encoding, current, backwards)
        wrong = [name for name, tensor in moved.items() if digest(tensor) != goal[name]]
        if wrong:
            raise ValueError(
                f"Patch {short(patch.fingerprint)} does not give what it says: expected sha256 "
                f"{short(goal[wrong[0]])} for {wrong[0]!r}, got {short(digest(moved[wrong[0]]))}. It is damaged (make "
                "or download it again), or this process rounds otherwise (`torch.set_flush_denormal` must be off)."
            )
        self._values.update(moved)
        self._digests.update(goal)

    def _check_form(self, patch: Patch) -> None:
        for name, touched in patch.tensors.items():
            expected = f"{touched.dtype} {tuple(touched.shape)}"
            parameter = self._own.get(name)
            if parameter is None or describe(parameter) != expected:
                found = "no such parameter" if parameter is None else describe(parameter)
                of_base = f" of {patch.base_model}" if patch.base_model else ""
                raise ValueError(
                    f"Patch {short(patch.fingerprint)} was made for {patch.model_class}{of_base} with {name!r} as "
                    f"{expected}, but this {type(self.model).__name__} has {found}; load the model that it was made "
                    f"for, with `dtype='{touched.dtype}'`."
                )
            if parameter.is_meta:
                raise ValueError(
                    f"Expected the values of {name!r} in memory, but they are offloaded (device 'meta'); load the "
                    "model without `device_map`, or patch the checkpoint before it is dispatched."
                )

    def _wrong_base(self, patch: Patch, digests: dict[str, str], start: dict[str, str], goal: dict[str, str]) -> str:
        differ = [name for name in start if digests[name] != start[name]]
        if digests == goal:
            advice = "They are as it leaves them: it is applied already, though the model's config does not say so."
        elif set(differ) & set(recorded_tensors(self.model)):
            advice = "Patches that are applied touch the same tensors: revert those that it was made without."
        else:
            advice = f"Load the model it was made for ({patch.base_model or 'it names no hub id'}), unchanged."
        return (
            f"Patch {short(patch.fingerprint)} was made for other weights: {len(differ)} of the {len(start)} tensors "
            f"that it touches differ; expected sha256 {short(start[differ[0]])} for {differ[0]!r}, found "
            f"{short(digests[differ[0]])}. {advice}"
        )

    def write(self, stack: Sequence[str]) -> None:
        """Gives the model its new values and its new record, or leaves both as they were."""
        old = {name: self._own[name].detach().to("cpu", copy=True) for name in self._values}
        digests = recorded_tensors(self.model) | self._digests
        try:
            self._put(self._values)
            # Fails where two parameters share memory without being tied.
            wrong = [name for name, value in self._digests.items() if digest(self._own[name]) != value]
            if wrong:
                raise RuntimeError(
                    f"{wrong[0]!r} does not keep the value it is given; parameters that share memory must be tied "
                    f"(`tie_weights`). `model.config.{RECORD}` and the parameters are as they were."
                )
            write_record(self.model, stack, digests)
        except BaseException:  # an interrupt, too, may come when half of it is written
            self._put(old)
            raise

    @torch.no_grad()
    def _put(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            self._own[name].copy_(value)
