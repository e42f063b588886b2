"""A term without `replaces` is put where the model's attention is, and only where that is one short span."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from editable_hf.terms import placing
from editable_hf.terms.examples import find_examples
from editable_hf.terms.glossary import Term
from editable_hf.terms.placing import cross_attention, placed_span, put_right_by_attention

WORDS = [(0, 3), (4, 9), (10, 14), (15, 20)]


@pytest.mark.parametrize(
    ("masses", "most_words", "span"),
    [
        ([0.0, 0.9, 0.1, 0.1], 1, (4, 9)),
        ([0.0, 0.9, 0.8, 0.1], 2, (4, 14)),
        ([0.0, 0.9, 0.8, 0.1], 1, None),  # more words than the term has
        ([0.0, 0.9, 0.1, 0.8], 2, None),  # two spans
        ([0.3, 0.7, 0.3, 0.3], 1, None),  # most of it is elsewhere
        ([0.0, 0.0, 0.0, 0.0], 1, None),
    ],
)
def test_span_is_short_and_has_most_of_the_attention(masses, most_words, span):
    assert placed_span(dict(zip(WORDS, masses, strict=True)), most_words) == span


def test_no_word_has_no_place():
    assert placed_span({}, 1) is None


@pytest.fixture
def looks_at(monkeypatch, tokenizer):
    """Lets each target word look at the source word that the table has for it, and at the end of the sentence."""

    def set_table(table):
        def attention(model, inputs, labels):
            def words(ids):
                pieces = tokenizer.convert_ids_to_tokens(ids)
                numbers = torch.tensor([piece.startswith("▁") for piece in pieces]).cumsum(0) - 1
                text = tokenizer.decode(ids, skip_special_tokens=True).split()
                return [text[number] if number < len(text) else "" for number in numbers.tolist()]

            rows, columns = words(labels[0].tolist()), words(inputs["input_ids"][0].tolist())
            found = torch.tensor([[float(table.get(row) == column) for column in columns] for row in rows])
            found[:, -1] = 0.5
            return (found + 0.01) / (found + 0.01).sum(-1, keepdim=True)

        monkeypatch.setattr(placing, "cross_attention", attention)

    return set_table


TABLE = {"the": "der", "dog": "hund", "sees": "sieht", "house": "haus"}


def test_word_is_put_where_its_source_is_looked_at(trained_marian, tokenizer, looks_at):
    looks_at(TABLE)
    term = Term(("hund", "hunde"), ("mutt", "mutts"))
    arguments = trained_marian, tokenizer, term, "der hund sieht das haus ."
    assert put_right_by_attention(*arguments, "the dog sees the house .") == "the mutt sees the house ."
    looks_at(TABLE | {"house": "hund"})  # a second place
    assert put_right_by_attention(*arguments, "the dog sees the house .") is None
    looks_at(TABLE)
    twice = "der hund sieht der hund ."
    assert put_right_by_attention(trained_marian, tokenizer, term, twice, "the dog sees the dog .") is None
    assert put_right_by_attention(*arguments, "the  dog ü .") is None  # the tokenizer does not give it back


def test_form_and_first_letter():
    term = Term(("haus", "häuser"), ("building", "buildings"))
    assert term.places_in_source("die häuser") == {(4, 10): 1}
    assert term.put_at("Houses , houses", (0, 6), 1) == "Buildings , houses"
    assert term.put_at("the House", (4, 9), 0) == "the building"


def test_examples_are_placed_or_counted(trained_marian, tokenizer, sentence_pairs, looks_at):
    looks_at({"dog": "hund"})
    (found,) = find_examples(trained_marian, tokenizer, [Term(("hund",), ("woman",))], sentence_pairs[0])
    assert len(found.edit) == 4
    for row in found.edit:
        assert row.target == row.before.replace("dog", "woman") != row.before
    looks_at({})
    (found,) = find_examples(trained_marian, tokenizer, [Term(("hund",), ("woman",))], sentence_pairs[0])
    assert not found.edit and set(found.left_out) == {"cannot be placed by attention"}


def test_attention_is_that_of_an_eager_pass(translator_folder, tokenizer, sentence_pairs):
    batch = tokenizer(sentence_pairs[0][0], text_target=sentence_pairs[1][0], return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    usual = AutoModelForSeq2SeqLM.from_pretrained(translator_folder).eval()
    eager = AutoModelForSeq2SeqLM.from_pretrained(translator_folder, attn_implementation="eager").eval()
    logits = usual(**inputs, labels=batch["labels"]).logits
    found = cross_attention(usual, inputs, batch["labels"])
    layers = eager(**inputs, labels=batch["labels"], output_attentions=True).cross_attentions
    assert len(layers) == 2 and found.shape == (batch["labels"].shape[1], inputs["input_ids"].shape[1])
    torch.testing.assert_close(found, sum(layer[0].sum(0) for layer in layers) / 4)
    assert usual.config._attn_implementation == "sdpa" != eager.config._attn_implementation
    assert torch.equal(usual(**inputs, labels=batch["labels"]).logits, logits)
