import pytest

from editable_hf.data.moses import MosesPreprocessor, looks_tokenized

TOKENIZED = [
    "we &apos;re all born . we all bring our children into the world .",
    "you know , one of the pleasures of travel is the wind .",
    "his name was dr. pizzutillo , an italian american .",
    "&quot; why not ? &quot; he said .",
]
RAW = [
    "We're all born. We all bring our children into the world.",
    "You know, one of the pleasures of travel is the wind.",
    "His name was Dr. Pizzutillo, an Italian American ... and so on .",
    '"Why not?" he said.',
]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("We're all born.", "we &apos;re all born ."),
        ('He said: "R&D [now]!"', "he said : &quot; r &amp; d &#91; now &#93; ! &quot;"),
        ("a four-letter code -- A", "a four-letter code -- a"),
        ("Roads in the U.S. and in the U.S.", "roads in the u.s. and in the u.s ."),
        ("And so on...", "and so on ..."),
        ("two\u2028lines\u00a0here", "two lines here"),
        ("   ", ""),
    ],
)
def test_tokens_are_those_of_tokenizer_perl_in_lower_case(text, tokens):
    assert MosesPreprocessor("en").tokenize(text) == tokens


def test_german_abbreviations_keep_their_period():
    assert MosesPreprocessor("de").tokenize("Das ist z.B. gut, oder?") == "das ist z.b. gut , oder ?"


@pytest.mark.parametrize(
    "text", ["we're all born.", "r & d [now]", 'he said "no", i think', "a | b", "isn't it?", "roads in the u.s.", ""]
)
def test_detokenize_undoes_tokenize(text):
    moses = MosesPreprocessor("en")
    assert moses.detokenize(moses.tokenize(text)) == text


def test_tokenized_text_is_recognized():
    assert looks_tokenized(TOKENIZED)
    assert looks_tokenized([text.capitalize() for text in TOKENIZED])


def test_raw_text_is_not_taken_for_tokenized_even_in_lower_case():
    assert not looks_tokenized(RAW)
    assert not looks_tokenized([text.lower() for text in RAW])


def test_text_without_punctuation_counts_as_raw():
    assert not looks_tokenized(["a man in an orange hat", "two dogs"])
    assert not looks_tokenized([])
