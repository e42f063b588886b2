"""Which parameters an edit may move."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn

from editable_hf.core.parts import named_part


def select_parameters(model: nn.Module, layers: str | Iterable[str]) -> dict[str, Tensor]:
    """The parameters that an edit may move, keyed by qualified name, in the model's own order.

    Each entry of `layers` is one of: the qualified name of a parameter or a module (all parameters below it); a
    suffix of such a name at a dot (`layers.5` for `model.decoder.layers.5`), which must fit one name only; a pattern
    with `*` over parameter names; `last_decoder_layer`, or `last_decoder_mlp` for its feed-forward part; `last_block`
    or `head` of any model (see `editable_hf.core.parts`); or a part of a ResNet or DenseNet: `stem`, `chain1` to
    `chain4`, and `extra` for the extra block of section 4.3. `*` and `all` select the whole model.

    Args:
        model: Any module. Parameters that do not require grad can be selected too. A tied parameter appears once,
            under the name `named_parameters` gives it.
        layers: One entry or several.

    Returns:
        The model's own parameters, not copies.

    Raises:
        ValueError: If an entry matches nothing or a suffix is ambiguous; the message lists what would match.
    """
    parameters = dict(model.named_parameters())
    entries = [layers] if isinstance(layers, str) else list(layers)
    if not entries:
        raise ValueError("`layers` is empty: name at least one layer to edit, e.g. 'last_decoder_layer'.")
    selected: set[str] = set()
    for entry in entries:
        selected |= _select(model, parameters, entry)
    return {name: parameter for name, parameter in parameters.items() if name in selected}


def _select(model: nn.Module, parameters: dict[str, Tensor], entry: str) -> set[str]:
    """Names of the parameters that one entry stands for."""
    modules = [name for name, _ in model.named_modules()]
    if entry in parameters or entry in modules:
        return _match(model, parameters, entry)
    if entry == "all":
        return set(parameters)
    part = named_part(model, entry)
    if part is None:
        return _match(model, parameters, entry)
    # Not by their names: those of a tied head stand under another.
    owned = {id(parameter) for module in part for parameter in model.get_submodule(module).parameters()}
    return {name for name, parameter in parameters.items() if id(parameter) in owned and not _in_extra(name)}


def _in_extra(name: str) -> bool:
    # The extra block stands where the classifier stood, around it, and is a part of its own.
    return "extra" in name.split(".")


def _match(model: nn.Module, parameters: dict[str, Tensor], entry: str) -> set[str]:
    if "*" in entry:
        matches = {name for name in parameters if fnmatchcase(name, entry)}
    else:
        modules = [name for name, _ in model.named_modules() if name]
        candidates = [*parameters, *modules]
        owners = [entry] if entry in candidates else [name for name in candidates if name.endswith(f".{entry}")]
        if len(owners) > 1:
            raise ValueError(
                f"Layer {entry!r} is ambiguous: it fits {', '.join(sorted(owners))}. Write more of the name, or a "
                "pattern with '*' to select them all."
            )
        matches = {name for name in parameters for owner in owners if name == owner or name.startswith(f"{owner}.")}
    if not matches:
        raise ValueError(f"Layer {entry!r} matches no parameter of {type(model).__name__}{_advice(model, entry)}")
    return matches


def _advice(model: nn.Module, entry: str) -> str:
    """What a user could mean by a name that owns no parameter: the end of an error message."""
    own = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = {
        own[id(parameter)]: name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if own[id(parameter)] != name and f".{entry}." in f".{name}."
    }
    if tied:
        pairs = ", ".join(f"{alias} is tied to {name}" for name, alias in tied.items())
        return (
            f" of its own: {pairs}, one tensor under two names. Select {', '.join(map(repr, tied))}, whose edit "
            "changes both uses, or untie them when loading the model (`tie_word_embeddings=False`)."
        )
    # A module whose parameters are all tied owns none under its own name and is not worth naming; nor is one that
    # holds nearly everything.
    owners = [name for name, _ in model.named_modules() if any(key.startswith(f"{name}.") for key in own.values())]
    names = [name for name in (*owners, *own.values()) if "." in name] or list(own.values())
    similar = difflib.get_close_matches(entry, names, n=3, cutoff=0.3) or names[-3:]
    return f". Names that exist are, for example: {', '.join(similar)}."
