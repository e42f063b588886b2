"""The parts of a model that have a name of their own here: its last block, its head, the chains of a ResNet."""

from __future__ import annotations

import re

from torch import nn

LAST_DECODER_LAYER, LAST_DECODER_MLP, LAST_BLOCK = "last_decoder_layer", "last_decoder_mlp", "last_block"

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


def named_part(model: nn.Module, name: str) -> list[str] | None:
    """Qualified names of the modules that a part of `model` consists of; `None` if parts are not called like `name`.

    Raises:
        ValueError: If the model has no such part.
    """
    if name == LAST_DECODER_LAYER:
        return [last_decoder_layer(model)]
    if name == LAST_DECODER_MLP:
        return last_decoder_mlp(model)
    if name == LAST_BLOCK:
        return [last_block(model)]
    if name == "head":
        return head(model)
    return part_modules(model, name) if _PART.fullmatch(name) else None


def last_decoder_layer(model: nn.Module) -> str:
    """Qualified name of the final decoder layer, which section 4.4 edits.

    Found as the last child of the outermost `nn.ModuleList` below a module named `decoder`: `model.decoder.layers.5`
    for Marian and BART, `decoder.block.5` for T5. In a decoder-only language model, whatever its modules are called,
    of the last `nn.ModuleList` that stands in no other: `transformer.h.11` for GPT-2, `model.layers.27` for Llama.

    Raises:
        ValueError: If the model has no such list.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and "decoder" in name.split(".") and len(module) > 0:
            return f"{name}.{len(module) - 1}"
    if is_decoder_only(model):
        *_, layers = _outermost_lists(model)
        return f"{layers}.{len(model.get_submodule(layers)) - 1}"
    raise ValueError(
        f"{type(model).__name__} has no list of layers below a module named 'decoder', so "
        f"{LAST_DECODER_LAYER!r} means nothing for it; name the layers to edit by their qualified names."
    )


def is_decoder_only(model: nn.Module) -> bool:
    """Whether `model` continues a prompt: a causal language model, no encoder-decoder and no image classifier."""
    generates = hasattr(model, "can_generate") and model.can_generate()
    return generates and not model.config.is_encoder_decoder


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


def last_block(model: nn.Module) -> str:
    """Qualified name of the last of the blocks that a network is a row of; where those come in stages, the last stage.

    The last decoder layer of a model that has a decoder, the last chain of a ResNet or DenseNet, otherwise the last
    child of the last `nn.ModuleList` that stands in no other.

    Raises:
        ValueError: If the model has no such list.
    """
    lists = _outermost_lists(model)
    if any("decoder" in name.split(".") for name in lists):
        return last_decoder_layer(model)
    if _kind_of(model) is not None:
        return part_modules(model, f"chain{num_chains(model)}")[-1]
    if lists:
        return f"{lists[-1]}.{len(model.get_submodule(lists[-1])) - 1}"
    raise ValueError(f"{type(model).__name__} has no list of layers, so {LAST_BLOCK!r} {_name_instead(model)}")


def head(model: nn.Module) -> list[str]:
    """Qualified names of the modules that turn features into logits.

    The output embeddings of a language model, whose one tensor is the input embeddings, too, where it is tied; of an
    image classifier the last linear layer after all blocks, or all as wide as it (a DeiT with a teacher has two).

    Raises:
        ValueError: If the model has none.
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    # FSMT gives its input embeddings, which are not what makes its logits.
    if output is not None and not isinstance(output, nn.Embedding):
        return [next(name for name, module in model.named_modules() if module is output)]
    if _kind_of(model) is not None:
        return part_modules(model, "head")
    widths: dict[str, int] = {}
    lists = _outermost_lists(model)
    for name, module in model.named_modules():
        if name in lists:
            widths.clear()
        elif isinstance(module, nn.Linear) and not is_below(name, lists) and "extra" not in name.split("."):
            widths[name] = module.out_features
    if not widths:
        raise ValueError(
            f"{type(model).__name__} has no linear layer after its blocks, so 'head' {_name_instead(model)}"
        )
    *_, last = widths.values()
    return [name for name, width in widths.items() if width == last]


def _outermost_lists(model: nn.Module) -> list[str]:
    lists: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not is_below(name, lists):
            lists.append(name)
    return lists


def is_below(name: str, modules: list[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)


def _name_instead(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    shown = names if len(names) <= 8 else [*names[:2], "...", *names[-6:]]
    return f"means nothing for it; name the layers to edit by their qualified names: {', '.join(shown)}."


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
    modules, kind = [name for name, _ in model.named_modules()], _kind_of(model)
    if kind is None:
        raise ValueError(f"{type(model).__name__} is no ResNet or DenseNet, so {part!r} {_name_instead(model)}")
    if part in ("stem", "head"):
        return _present(modules, kind[part])
    found = _present(modules, kind["chain"], int(part[-1]))
    if not found:
        raise ValueError(f"{type(model).__name__} has no {part!r}; its chains are chain1 to chain{num_chains(model)}.")
    return found


def _kind_of(model: nn.Module) -> dict[str, tuple[str, ...]] | None:
    modules = [name for name, _ in model.named_modules()]
    return next((kind for kind in _KINDS if len(_present(modules, kind["stem"])) == len(kind["stem"])), None)


def num_chains(model: nn.Module) -> int:
    """How many chains of blocks a ResNet or DenseNet has; 0 for any other model."""
    modules, kind = [name for name, _ in model.named_modules()], _kind_of(model)
    if kind is None:
        return 0
    return next(number for number in range(1, 10) if not _present(modules, kind["chain"], number)) - 1


def _present(modules: list[str], templates: tuple[str, ...], number: int = 0) -> list[str]:
    names = (_outermost(modules, each.format(number=number, previous=number - 1)) for each in templates)
    return [name for name in names if name is not None]


def _outermost(modules: list[str], name: str) -> str | None:
    """The module that ends in `name`; of several (blocks have a `conv1`, too) the outermost."""
    found = [each for each in modules if each == name or each.endswith(f".{name}")]
    return min(found, key=lambda each: each.count("."), default=None)
