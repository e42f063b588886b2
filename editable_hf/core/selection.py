"""Which parameters an edit may move."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn

LAST_DECODER_LAYER, LAST_DECODER_MLP = "last_decoder_layer", "last_decoder_mlp"

# What the feed-forward part of a decoder layer is called, within the layer.
_MLP = re.compile(r"(layer\.\d+\.)?(mlp|DenseReluDense|feed_forward|ffn|fc1|fc2|intermediate|output)")

# The six parts of section 4.1 by the modules they consist of, for each kind of network: Hugging Face's ResNet,
# the CIFAR ResNets (torchvision's names, too) and DenseNet. A model is of the kind whose stem it has, at any depth.
_KINDS = (
    {"stem": ("resnet.embedder",), "chain": ("resnet.encoder.stages.{previous}",), "head": ("classifier",)},
    {"stem": ("conv1", "bn1"), "chain": ("layer{number}",), "head": ("linear", "fc")},
    {
        "stem": ("features.conv0", "features.norm0"),
        "chain": ("features.denseblock{number}", "features.transition{number}"),
        "head": ("features.norm5", "classifier"),
    },
)
_PART = re.compile(r"stem|chain[1-9]|head")


def last_decoder_layer(model: nn.Module) -> str:
    """Qualified name of the final decoder layer, which section 4.4 edits.

    Found as the last child of the outermost `nn.ModuleList` below a module named `decoder`: `model.decoder.layers.5`
    for Marian and BART, `decoder.block.5` for T5.

    Raises:
        ValueError: If the model has no such list.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and "decoder" in name.split(".") and len(module) > 0:
            return f"{name}.{len(module) - 1}"
    raise ValueError(
        f"{type(model).__name__} has no list of layers below a module named 'decoder', so "
        f"{LAST_DECODER_LAYER!r} means nothing for it; name the layers to edit by their qualified names."
    )


def last_decoder_mlp(model: nn.Module) -> list[str]:
    """Qualified names of the modules that are the feed-forward part of the final decoder layer.

    Raises:
        ValueError: If there is no such layer, or its parts have other names than those of transformers' models.
    """
    layer = last_decoder_layer(model)
    inside = {
        name: name.removeprefix(f"{layer}.") for name, _ in model.named_modules() if name.startswith(f"{layer}.")
    }
    found = [name for name, own in inside.items() if _MLP.fullmatch(own)]
    if not found:
        parts = ", ".join(own for own in inside.values() if "." not in own)
        raise ValueError(
            f"The last decoder layer of {type(model).__name__}, {layer}, has no part that is known to be its "
            f"feed-forward network; its parts are {parts}. Name the layers to edit by their qualified names."
        )
    return found


def select_parameters(model: nn.Module, layers: str | Iterable[str]) -> dict[str, Tensor]:
    """The parameters that an edit may move, keyed by qualified name, in the model's own order.

    Each entry of `layers` is one of: the qualified name of a parameter or a module (all parameters below it); a
    suffix of such a name at a dot (`layers.5` for `model.decoder.layers.5`), which must fit one name only; a pattern
    with `*` over parameter names; `last_decoder_layer`, or `last_decoder_mlp` for its feed-forward part; or a part of
    a ResNet or DenseNet: `stem`, `chain1` to `chain4`, `head`, and `extra` for the extra block of section 4.3. `*`
    and `all` select the whole model.

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
    if entry == LAST_DECODER_LAYER:
        return _match(model, parameters, last_decoder_layer(model))
    if entry == LAST_DECODER_MLP:
        below = last_decoder_mlp(model)
        return {name for name in parameters if _is_below(name, below)}
    if entry == "all":
        return set(parameters)
    if _PART.fullmatch(entry):
        below = part_modules(model, entry)
        return {name for name in parameters if _is_below(name, below) and not _in_extra(name)}
    return _match(model, parameters, entry)


def part_modules(model: nn.Module, part: str) -> list[str]:
    """Qualified names of the modules that a part of a ResNet or DenseNet consists of, in the order they run.

    Args:
        model: A ResNet or DenseNet, or a model around one.
        part: `stem`, `chain1` to `chain9`, or `head`.

    Raises:
        ValueError: If there is no such part.
    """
    if not _PART.fullmatch(part):
        raise ValueError(f"`part` must be 'stem', 'head' or a chain ('chain1', 'chain2', ...), got {part!r}.")
    modules = [name for name, _ in model.named_modules()]

    def present(templates: tuple[str, ...], number: int = 0) -> list[str]:
        names = (_outermost(modules, each.format(number=number, previous=number - 1)) for each in templates)
        return [name for name in names if name is not None]

    for kind in _KINDS:
        if len(present(kind["stem"])) < len(kind["stem"]):
            continue
        if part in ("stem", "head"):
            return present(kind[part])
        found = present(kind["chain"], int(part[-1]))
        if found:
            return found
        number = next(count for count in range(1, 10) if not present(kind["chain"], count)) - 1
        raise ValueError(f"{type(model).__name__} has no {part!r}; its chains are chain1 to chain{number}.")
    raise ValueError(
        f"{type(model).__name__} is no ResNet or DenseNet, so {part!r} means nothing for it; name the layers to edit "
        "by their qualified names."
    )


def _outermost(modules: list[str], name: str) -> str | None:
    """The module that ends in `name`; of several (blocks have a `conv1`, too) the outermost."""
    found = [each for each in modules if each == name or each.endswith(f".{name}")]
    return min(found, key=lambda each: each.count("."), default=None)


def _is_below(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


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
