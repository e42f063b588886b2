"""Continues the prompts of a regression set before and after a patch, and collects what changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.editing import edited
from editable_hf.data.continuations import continue_prompts
from editable_hf.review.review import CONTINUATION, ERROR_RATE, Review, name_of, own_params
from editable_hf.review.translations import changed_texts, check_sizes


def review_continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    params: Mapping[str, Tensor],
    prompts: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    edited_sources: Collection[str] = (),
    max_new_tokens: int = 20,
    batch_size: int = 64,
    patch: str = "edit",
    base_model: str | None = None,
    regression_set: str | None = None,
    progress: str | None = None,
) -> Review:
    """What a decoder-only model says after each prompt, before and after a patch, decoding greedily.

    Args:
        model: The unedited model; it is left as it was.
        tokenizer: Its tokenizer.
        params: The edited parameters by qualified name, e.g. `EditResult.params`.
        prompts: The regression set.
        references: What should follow each prompt; without them only the changes are found.
        edited_sources: The prompts that the patch is for, to be marked if they are among `prompts`.
        max_new_tokens: Most tokens that are decoded after a prompt.
        batch_size: Prompts decoded together.
        patch: What to call the patch.
        base_model: What to call the model, by default its own name or path.
        regression_set: What to call the prompts.
        progress: Title of progress bars, none if not given.

    Returns:
        The review; its metric is the share of answers that do not begin with the reference.

    Raises:
        ValueError: If there are no prompts, not as many references, or parameters that the model does not have.
    """
    check_sizes(prompts, references)
    params, options = own_params(model, params), {"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    before = continue_prompts(model, tokenizer, prompts, **options, progress=progress)
    with edited(model, params):
        after = continue_prompts(model, tokenizer, prompts, **options, progress=progress)
    metrics = ("not computed: no references", None, None)
    if references is not None:
        detail = f"answers of up to {max_new_tokens} tokens that do not begin with the reference"
        metrics = (detail, *(_share_wrong(texts, references) for texts in (before, after)))
    return Review(
        CONTINUATION,
        patch,
        base_model or name_of(model),
        regression_set or f"{len(prompts):,} prompts",
        ERROR_RATE,
        *metrics,
        num_examples=len(prompts),
        changes=changed_texts(prompts, references, before, after, edited_sources, _is_right),
    )


def _share_wrong(texts: Sequence[str], references: Sequence[str]) -> float:
    return 1 - sum(map(_is_right, texts, references)) / len(texts)


def _is_right(text: str, reference: str) -> bool:
    return text.strip().startswith(reference.strip())
