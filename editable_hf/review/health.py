"""Whether a stack of patches leaves a language model healthy: each may do little harm, and all together much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.evaluation.held_out_text import HeldOutText
from editable_hf.patches.patch import Patch
from editable_hf.patches.stack import PatchLike, apply_patches, loaded_patches, revert_patches


class Health(NamedTuple):
    """The state of a model with some patches.

    Attributes:
        num_patches: How many it carries.
        kl: `KL(unpatched || patched)` of the next token on the text, nats.
        perplexity: On the text.
        healthy: Whether both are within their bounds.
    """

    num_patches: int
    kl: float
    perplexity: float
    healthy: bool


def health_of_stack(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    patches: Sequence[PatchLike],
    texts: Sequence[str],
    *,
    max_kl: float | None = None,
    max_perplexity: float | None = None,
) -> list[Health]:
    """Applies patches one after another and measures after each, until one leaves the bounds.

    Args:
        model: A decoder-only model; it is left as it was, bit for bit.
        tokenizer: Its tokenizer.
        patches: In the order in which they are applied; at least one.
        texts: Ordinary text, a sentence or paragraph each, cut to what the tokenizer says that the model can read.
        max_kl: Highest divergence from the unpatched model, nats a token.
        max_perplexity: Highest perplexity.

    Returns:
        Without patches first, then after each one. If the last is not healthy, the patch with its number did it, and
        those after it were not applied.

    Raises:
        ValueError: If a patch does not fit, there is none, or no text of two tokens, or the model without patches has
            a perplexity above the bound.
    """
    chosen: list[Patch] = loaded_patches(patches)
    if not chosen:
        raise ValueError("There is no patch to check; give at least one.")
    layers = list(dict.fromkeys(name for patch in chosen for name in patch.tensors))
    text = HeldOutText(model, tokenizer(list(texts), truncation=True)["input_ids"], layers)
    if max_perplexity is not None and text.perplexity > max_perplexity:
        raise ValueError(
            f"The model has a perplexity of {text.perplexity:.2f} on this text without any patch, above the "
            f"{max_perplexity} allowed: no patch can be blamed for it; raise the bound, or give other text."
        )
    found, own, applied = [Health(0, 0.0, text.perplexity, True)], dict(model.named_parameters()), 0
    try:
        for number, patch in enumerate(chosen, start=1):
            apply_patches(model, patch)
            applied = number
            change = text.change({name: own[name].detach() for name in layers})
            within = (max_kl is None or change.kl <= max_kl) and (
                max_perplexity is None or change.perplexity <= max_perplexity
            )
            found.append(Health(number, change.kl, change.perplexity, within))
            if not within:
                break
    finally:
        revert_patches(model, applied)
    return found
