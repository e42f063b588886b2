"""Terms without an edit: replaced in the translation, or decoding constrained to them.

Both leave the model as it is, and both must be run with every sentence for as long as the model is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from editable_hf.core.functional import eval_mode
from editable_hf.models.beam_search import batches_by_length, translation_limit
from editable_hf.terms.examples import translate
from editable_hf.terms.glossary import Term

_BATCH_SIZE = 64


def replaced_translations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, terms: Sequence[Term], sources: Sequence[str]
) -> list[str]:
    """Translations with what each term replaces replaced, where the source uses the term.

    Needs to be told what the model says today, and knows nothing of the words around it.
    """
    outputs = translate(model, tokenizer, sources)
    for term in terms:
        pairs = zip(sources, outputs, strict=True)
        outputs = [term.replaced_in(output) if term.in_source(source) else output for source, output in pairs]
    return outputs


def constrained_translations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    terms: Sequence[Term],
    sources: Sequence[str],
    boost: float,
) -> list[str]:
    """Translations of beam search that is held to the terms of each source, see [`TermProcessor`].

    Args:
        model: An encoder-decoder model with the number of beams in its generation config.
        tokenizer: Its tokenizer.
        terms: Of a glossary.
        sources: Sentences; those without a term are translated as always.
        boost: See [`TermProcessor`].
    """
    own = [[term for term in terms if term.in_source(source)] for source in sources]
    free = [index for index, used in enumerate(own) if not used]
    outputs = dict(zip(free, translate(model, tokenizer, [sources[index] for index in free]), strict=True))
    held = [index for index, used in enumerate(own) if used]
    ids = tokenizer([sources[index] for index in held], truncation=True)["input_ids"] if held else []
    for batch in batches_by_length(list(map(len, ids)), _BATCH_SIZE):
        inputs = tokenizer.pad({"input_ids": [ids[each] for each in batch]}, return_tensors="pt").to(model.device)
        processor = TermProcessor(tokenizer, [own[held[each]] for each in batch], boost)
        limit = translation_limit(model, inputs["input_ids"].shape[1])
        with eval_mode(model), torch.no_grad():
            rows = model.generate(**inputs, max_new_tokens=limit, logits_processor=LogitsProcessorList([processor]))
        texts = tokenizer.batch_decode(rows, skip_special_tokens=True)
        outputs |= {held[each]: text for each, text in zip(batch, texts, strict=True)}
    return [outputs[index] for index in range(len(sources))]


class TermProcessor(LogitsProcessor):
    """Holds beam search to terms by three rules, for each hypothesis and term of its sentence.

    Until the term is said, in any of its forms, the hypothesis must not end, and it is better by `boost` for each
    token of a form that it has begun, which is taken back where it goes on otherwise. What the term replaces is never
    said: its last token is refused after all those before it.

    Args:
        tokenizer: Of the model.
        terms: Of each sentence of the batch.
        boost: Nats: how much less likely than the model's own choice each token of the term may be.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, terms: Sequence[Sequence[Term]], boost: float):
        self.boost, self.end = boost, tokenizer.eos_token_id
        self._wanted = [[_token_rows(tokenizer, term.target) for term in used] for used in terms]
        self._refused = [[row for term in used for row in _token_rows(tokenizer, term.replaces)] for used in terms]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores, beams = scores.clone(), len(input_ids) // len(self._wanted)
        for row, said in enumerate(input_ids.tolist()):
            for forms in self._wanted[row // beams]:
                if not any(_holds(said, form) for form in forms):
                    scores[row, self.end] = -torch.inf
                    begun = _begun(said, forms)
                    scores[row] -= self.boost * (max(begun.values()) - 1)
                    for token, length in begun.items():
                        scores[row, token] += self.boost * length
            for form in self._refused[row // beams]:
                if _ends_with(said, form[:-1]):
                    scores[row, form[-1]] = -torch.inf
        return scores


def _token_rows(tokenizer: PreTrainedTokenizerBase, forms: Sequence[str]) -> list[list[int]]:
    """Tokens of the forms of a term, as within a sentence and at its beginning."""
    texts = dict.fromkeys(text for form in forms for text in (form, form[:1].upper() + form[1:]))
    return [tokenizer(text_target=text, add_special_tokens=False)["input_ids"] for text in texts]


def _ends_with(said: list[int], form: list[int]) -> bool:
    return not form or said[-len(form) :] == form


def _holds(said: list[int], form: list[int]) -> bool:
    return any(said[start : start + len(form)] == form for start in range(len(said) - len(form) + 1))


def _begun(said: list[int], forms: Sequence[list[int]]) -> dict[int, int]:
    """The tokens that begin or continue a form, and how many of its tokens are said with them."""
    begun: dict[int, int] = {}
    for form in forms:
        for length in range(len(form)):
            if _ends_with(said, form[:length]):
                begun[form[length]] = max(length + 1, begun.get(form[length], 0))
    return begun
