"""Translates a regression set before and after a patch, and collects what changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from sacrebleu.metrics import CHRF
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.editing import edited
from editable_hf.data.moses import looks_tokenized
from editable_hf.evaluation.bleu import CorpusBleu
from editable_hf.evaluation.translator import Translator, reaches_encoder
from editable_hf.review.review import BLEU, TRANSLATION, Change, Review, name_of, own_params, sorted_changes
from editable_hf.review.terms import review_terms
from editable_hf.review.words import word_distance
from editable_hf.terms.glossary import Term


def review_translations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    params: Mapping[str, Tensor],
    sources: Sequence[str],
    references: Sequence[str] | None = None,
    *,
    edited_sources: Collection[str] = (),
    terms: Sequence[Term] = (),
    num_beams: int | None = None,
    batch_size: int = 64,
    patch: str = "edit",
    base_model: str | None = None,
    regression_set: str | None = None,
    progress: str | None = None,
) -> Review:
    """Translates sentences before and after a patch, and compares.

    Args:
        model: The unedited model; it is left as it was.
        tokenizer: Its tokenizer.
        params: The edited parameters by qualified name, e.g. `EditResult.params`.
        sources: The regression set, as the model expects sentences.
        references: Their translations as the model writes them; without them only the changes are found.
        edited_sources: The sentences that the patch is for, to be marked if they are among `sources`.
        terms: Of a glossary that the patch is for.
        num_beams: Beam size with early stopping; by default decoding is as the model's generation config says.
        batch_size: Sentences decoded together.
        patch: What to call the patch.
        base_model: What to call the model, by default its own name or path.
        regression_set: What to call the sentences.
        progress: Title of progress bars, none if not given.

    Returns:
        The review. BLEU is case-sensitive, so that a patch that spoils case shows; with sacrebleu's tokenizer "none"
        for references that are tokenized already, "13a" for others.

    Raises:
        ValueError: If there are no sources, not as many references, or parameters that the model does not have.
    """
    check_sizes(sources, references)
    params = own_params(model, params)
    options = {"num_beams": num_beams, "batch_size": batch_size, "keep_encoded": not reaches_encoder(model, params)}
    translator = Translator(model, tokenizer, sources, **options)
    before = translator(progress)
    with edited(model, params):
        after = translator(progress)
    changes = changed_texts(sources, references, before, after, edited_sources, _chrf)
    metrics = ("not computed: no references", None, None) if references is None else _bleu(references, before, after)
    return Review(
        TRANSLATION,
        patch,
        base_model or name_of(model),
        regression_set or f"{len(sources):,} sentences",
        BLEU,
        *metrics,
        num_examples=len(sources),
        changes=changes,
        terms=review_terms(terms, sources, before, after, edited_sources) if terms else None,
    )


def check_sizes(sources: Sequence[str], references: Sequence[str] | None) -> None:
    """Raises `ValueError` without sources, or if there are references, but not as many."""
    if not sources or (references is not None and len(references) != len(sources)):
        num_references = "no" if references is None else f"{len(references):,}"
        raise ValueError(
            f"Expected at least one source, and as many references or none, but got {len(sources):,} sources and "
            f"{num_references} references; check the regression set."
        )


def changed_texts(
    sources: Sequence[str],
    references: Sequence[str] | None,
    before: Sequence[str],
    after: Sequence[str],
    edited_sources: Collection[str],
    score: Callable[[str, str], float],
) -> list[Change]:
    """The outputs that differ; what is gained is by the score of an output against its reference."""
    changes, edited = [], {text.strip() for text in edited_sources}
    for index, (source, old, new) in enumerate(zip(sources, before, after, strict=True)):
        if old == new:
            continue
        reference = None if references is None else references[index]
        changes.append(
            Change(
                index,
                source,
                reference,
                old,
                new,
                edited=source.strip() in edited,
                distance=word_distance(old, new),
                gain=None if reference is None else score(new, reference) - score(old, reference),
            )
        )
    return sorted_changes(changes)


def _chrf(text: str, reference: str) -> float:
    return CHRF().sentence_score(text, [reference]).score


def _bleu(references: Sequence[str], before: Sequence[str], after: Sequence[str]) -> tuple[str, float, float]:
    tokenize = "none" if looks_tokenized(references) else "13a"
    bleu = CorpusBleu(references, tokenize=tokenize, lowercase=False)
    scores = (bleu.score(bleu.sentence_statistics(texts)) for texts in (before, after))
    return (f"sacrebleu, case-sensitive, tokenizer {tokenize}", *scores)
