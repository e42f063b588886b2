"""Which sentences an edit of a translation model touches, by their distance to the edited one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.functional import eval_mode
from editable_hf.evaluation.bootstrap import bootstrap_mean


def embed_sources(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    batch_size: int = 64,
    progress: str | None = "sources",
) -> Tensor:
    """What the model's encoder makes of each sentence: mean of its last hidden states, of length 1.

    Args:
        model: An encoder-decoder model; edits of its decoder leave these vectors as they are.
        tokenizer: Its tokenizer.
        sources: Sentences in the form that the model takes.
        batch_size: Sentences that are encoded together.
        progress: Title of the progress bar, none if `None`.

    Returns:
        `(num_sentences, hidden)`, float32, on the CPU.
    """
    encoder, vectors = model.get_encoder(), []
    for start in tqdm(range(0, len(sources), batch_size), desc=progress, disable=progress is None, unit="batch"):
        batch = list(sources[start : start + batch_size])
        inputs = tokenizer(batch, padding=True, truncation=True, return_tensors="pt")
        with eval_mode(model), torch.no_grad():
            states = encoder(**inputs.to(model.device)).last_hidden_state.float()  # (batch, length, hidden)
        mask = inputs["attention_mask"].unsqueeze(-1)
        vectors.append(F.normalize((states * mask).sum(1), dim=1).cpu())
    return torch.cat(vectors)


def changed_by_distance(similarities: Tensor, changed: Tensor, num_bins: int = 10) -> list[dict[str, Any]]:
    """How many translations edits change, from the sentences nearest to the edited one to the farthest.

    Args:
        similarities: Of each edited sentence to each test sentence, `(num_edits, num_sentences)`. NaN leaves a
            sentence out (the edited one itself).
        changed: Whether the edit changed the sentence's translation, same shape.
        num_bins: Parts of equal size that the test sentences are divided into, for each edit anew.

    Returns:
        For each part, nearest first: `nearest`, the share of sentences that are as near or nearer; `similarity`, the
        mean; `changed`, the mean share of changed translations, with its 95% bootstrap `interval` over the edits.

    Raises:
        ValueError: For fewer sentences than parts.
    """
    fewest = int((~similarities.isnan()).sum(1).min())
    if fewest < num_bins:
        raise ValueError(f"{fewest} sentences cannot be divided into {num_bins} parts; ask for fewer.")
    shares: list[list[float]] = [[] for _ in range(num_bins)]
    means: list[list[float]] = [[] for _ in range(num_bins)]
    for row, touched in zip(similarities, changed.double(), strict=True):
        others = (~row.isnan()).nonzero().squeeze(1)
        order = others[row[others].argsort(descending=True, stable=True)]
        for number, part in enumerate(order.tensor_split(num_bins)):
            shares[number].append(touched[part].mean().item())
            means[number].append(row[part].double().mean().item())
    rows = []
    for number, (share, mean) in enumerate(zip(shares, means, strict=True), start=1):
        interval = bootstrap_mean(share)
        rows.append(
            {
                "nearest": number / num_bins,
                "similarity": sum(mean) / len(mean),
                "changed": interval.mean,
                "interval": [interval.low, interval.high],
            }
        )
    return rows


def changes_of(records: Sequence[Mapping[str, Any]], num_sentences: int) -> Tensor:
    """Whether each edit changed each translation, `(num_edits, num_sentences)`, from the records of an evaluator."""
    changed = torch.zeros(len(records), num_sentences, dtype=torch.bool)
    for row, record in zip(changed, records, strict=True):
        row[[each["index"] for each in record["changed"]]] = True
    return changed
