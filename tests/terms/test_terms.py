"""A term is put right in sentences that the edit has not seen, and what holds is counted and kept."""

from dataclasses import replace

import pytest
import torch

from editable_hf import EditorConfig
from editable_hf.terms.examples import find_examples, translate
from editable_hf.terms.glossary import Term
from editable_hf.terms.terms import edit_terms

DOG = Term(("hund",), ("the woman",), ("the dog",))  # words that the small model knows


@pytest.fixture
def model(trained_marian):
    trained_marian.generation_config.update(num_beams=3, early_stopping=True, max_new_tokens=20, length_penalty=1.0)
    return trained_marian


@pytest.fixture
def config():
    return EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60)


def test_parts_are_kept_apart(model, tokenizer, sentence_pairs):
    nothing, absent = Term(("katze",), ("the pet",)), Term(("elefant",), ("the elephant",), ("x",))
    dog, cat, none = find_examples(model, tokenizer, [DOG, nothing, absent], sentence_pairs[0])
    parts = [{row.source for row in rows} for rows in (dog.edit, dog.check, dog.held_out)]
    assert list(map(len, parts)) == [4, 6, 10] and len(set.union(*parts)) == 20
    for row in dog.edit:
        assert "hund" in row.source and row.before == translate(model, tokenizer, [row.source])[0]
        assert row.target == row.before.replace("the dog", "the woman") != row.before
    assert dog.left_out["enough others"] > 0
    assert not cat.edit and set(cat.left_out) == {"cannot be placed by attention"}
    assert not none.edit and not none.left_out


def test_term_holds_in_unseen_sentences(model, tokenizer, sentence_pairs, config):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = find_examples(model, tokenizer, [DOG], sentence_pairs[0])
    result = edit_terms(model, tokenizer, found, config)
    (state,) = result.states
    assert result.outcome.result.success and state["held_out"] == 10 and state["held_out_right_before"] == 0
    assert state["edited_right"] >= 4 and state["held_out_right"] >= 8
    assert {row.source for row in result.examples[0].edit}.isdisjoint(row.source for row in found[0].held_out)
    outputs = translate(model, tokenizer, [row.source for row in found[0].held_out], result.outcome.result.params)
    assert state["held_out_right"] == sum(map(DOG.is_right, outputs))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    patch = result.patch(model, config)
    assert patch.metrics["terms"] == [state] and len(patch.request) == state["edited"]


def test_sentences_that_fail_a_check_join_the_edit(model, tokenizer, sentence_pairs, config):
    (found,) = find_examples(model, tokenizer, [DOG], sentence_pairs[0])
    found = replace(found, edit=found.edit[:1], check=found.check + found.edit[1:])
    once, whole = (edit_terms(model, tokenizer, [found], config, max_rounds=rounds) for rounds in (1, 3))
    outputs = translate(model, tokenizer, [row.source for row in found.check], once.outcome.result.params)
    failed = [row for row, text in zip(found.check, outputs, strict=True) if not DOG.is_right(text)]
    assert failed and once.num_rounds == 1 and whole.num_rounds > 1
    (joined,) = whole.examples
    assert joined.edit[: 1 + len(failed)] == found.edit + failed and not set(joined.check) & set(joined.edit)


def test_nothing_to_edit_is_no_error(model, tokenizer, config):
    found = find_examples(model, tokenizer, [DOG], ["die katze ."])
    result = edit_terms(model, tokenizer, found, config)
    assert result.outcome is None and result.num_rounds == 0 and result.patch(model, config) is None
    assert result.states[0]["edited"] == result.states[0]["held_out"] == 0
    with pytest.raises(ValueError, match="max_rounds"):
        edit_terms(model, tokenizer, found, config, max_rounds=0)
