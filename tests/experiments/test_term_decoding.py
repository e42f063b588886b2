"""Decoding that is held to terms says them, once, and touches no other sentence."""

import torch

from editable_hf.experiments.term_decoding import TermProcessor, constrained_translations, replaced_translations
from editable_hf.terms.examples import translate
from editable_hf.terms.glossary import Term

DOG, CAT = Term(("hund",), ("the woman",), ("the dog",)), Term(("katze",), ("my brother",))  # words that it knows


def test_terms_are_said_where_the_source_has_them(trained_marian, tokenizer, sentence_pairs):
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=20, length_penalty=1.0)
    sources = sentence_pairs[0][:12]
    plain = translate(trained_marian, tokenizer, sources)
    replaced = replaced_translations(trained_marian, tokenizer, [DOG, CAT], sources)
    held = constrained_translations(trained_marian, tokenizer, [DOG, CAT], sources, boost=4.0)
    used = [[term for term in (DOG, CAT) if term.in_source(source)] for source in sources]
    assert {len(own) for own in used} == {0, 1}
    for own, before, text, other in zip(used, plain, held, replaced, strict=True):
        assert all(term.is_right(text) for term in own)
        assert own or text == before
        assert other == (before.replace("the dog", "the woman") if own == [DOG] else before)


def test_scores_by_hand(tokenizer):
    first, second, *rest = tokenizer(text_target="the woman", add_special_tokens=False)["input_ids"]
    refused, end = tokenizer(text_target="the dog", add_special_tokens=False)["input_ids"][-1], tokenizer.eos_token_id
    scores, other = torch.zeros(3, len(tokenizer)), 0
    said = torch.tensor([[first, second, *rest], [other] * (1 + len(rest)) + [first], [other] * (2 + len(rest))])
    done, begun, nothing = TermProcessor(tokenizer, [[DOG]], 3.0)(said, scores)
    assert not scores.any() and done[end] == 0 and done.count_nonzero() == 0
    assert begun[end] == nothing[end] == begun[refused] == -torch.inf and nothing[refused] == 0
    assert (nothing[first], nothing[second], nothing[other]) == (3, 0, 0)
    assert (begun[first], begun[second], begun[other]) == (0, 3, -3)  # what "the" got is taken back
