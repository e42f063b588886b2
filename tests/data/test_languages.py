"""A multilingual model is told its languages once; requests, edits, decoding and the command line follow."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import (
    M2M100Config,
    M2M100ForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MBartTokenizer,
    NllbTokenizer,
    T5Config,
    T5ForConditionalGeneration,
)

from editable_hf import (
    EditableSeq2SeqTrainer,
    EditableSeq2SeqTrainingArguments,
    edit,
    make_edit_requests,
    request_constraint,
    rmsprop,
)
from editable_hf.cli import main
from editable_hf.data.languages import set_languages
from editable_hf.evaluation.verified_edit import decode
from editable_hf.patches import Patch

LANGUAGES = ["deu_Latn", "eng_Latn", "fra_Latn"]
WORDS = "der hund sieht das haus the dog sees house".split()


@pytest.fixture
def multilingual():
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted({"▁", *"".join(WORDS)})]
    vocab = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    return NllbTokenizer(vocab=vocab, merges=[], extra_special_tokens=LANGUAGES)


@pytest.fixture
def model(multilingual):
    config = M2M100Config(
        vocab_size=len(multilingual), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return M2M100ForConditionalGeneration(config).eval()


def test_requests_and_decoding_have_the_languages(model, multilingual):
    set_languages(model, multilingual, "deu_Latn", "fra_Latn")
    german, french = (multilingual.convert_tokens_to_ids(code) for code in ("deu_Latn", "fra_Latn"))
    (request,) = make_edit_requests(
        model, multilingual, ["der hund"], targets=["the dog"], num_alternatives=3, progress=None
    )
    assert request["input_ids"][0] == german and request["labels"][0] == french
    assert request["target"] == "the dog"
    assert request["alternatives"] and all(ids[0] == french for ids in request["alternatives"])
    assert decode(model, multilingual, request)[0] == french


def test_token_of_the_language_does_not_count(model, multilingual):
    """Against a forward in float64 whose labels leave it out."""
    set_languages(model, multilingual, "deu_Latn", "fra_Latn")
    (request,) = make_edit_requests(
        model, multilingual, ["der hund"], targets=["the dog"], num_alternatives=3, progress=None
    )
    model = model.double()
    source = torch.tensor([request["input_ids"]])

    def score(ids):
        decoder_ids = torch.tensor([[2, *ids[:-1]]])
        logits = model(input_ids=source, decoder_input_ids=decoder_ids).logits[0].log_softmax(-1)
        return sum(logits[place, token].item() for place, token in enumerate(ids) if place > 0)

    expected = max(map(score, request["alternatives"])) - score(request["labels"])
    result = edit(model, request_constraint(request, model), rmsprop(1e-3), "last_decoder_layer", 0)
    assert result.history[0] == pytest.approx(expected, rel=1e-9)


def test_mbart_cc25_starts_from_the_language_that_it_writes():
    """Its sources and targets end in their language; those of mBART-50 and NLLB begin with it."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted({"▁", *"".join(WORDS)})]
    tokenizer = MBartTokenizer(vocab=[(piece, -1.0) for piece in pieces])
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=64, init_std=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MBartForConditionalGeneration(config).eval()
    set_languages(model, tokenizer, "de_DE", "en_XX")
    german, english = (tokenizer.convert_tokens_to_ids(code) for code in ("de_DE", "en_XX"))
    requests = make_edit_requests(
        model, tokenizer, ["der hund"], targets=["the dog"], num_alternatives=3, progress=None
    )
    end = tokenizer.eos_token_id
    assert requests[0]["input_ids"][-2:] == [end, german]
    assert requests[0]["labels"][-1] == end and english not in requests[0]["labels"]
    assert requests[0]["target"] == "the dog"
    assert set(request_constraint(requests[0], model).decoder_input_ids[:, 0].tolist()) == {english}
    (row,) = model.generate(**tokenizer("der hund", return_tensors="pt"), max_new_tokens=3)
    assert row[0] == english


def test_languages_must_be_known_and_complete(model, multilingual):
    with pytest.raises(ValueError, match="multilingual.*deu_Latn, eng_Latn, fra_Latn"):
        set_languages(model, multilingual)
    with pytest.raises(ValueError, match="does not know the language 'german'"):
        set_languages(model, multilingual, "german", "eng_Latn")
    with pytest.raises(ValueError, match="both languages or none"):
        set_languages(model, multilingual, "deu_Latn")
    model.generation_config.forced_bos_token_id = multilingual.convert_tokens_to_ids("eng_Latn")
    set_languages(model, multilingual)  # as its maker has set them


def test_model_of_one_pair_has_no_languages(tiny_marian, tokenizer):
    set_languages(tiny_marian, tokenizer)
    with pytest.raises(ValueError, match="has no languages to choose from"):
        set_languages(tiny_marian, tokenizer, "de", "en")


def test_command_line(model, multilingual, tmp_path, capsys):
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(tmp_path / "model")
    multilingual.save_pretrained(tmp_path / "model")
    command = [
        "edit",
        str(tmp_path / "model"),
        "--source",
        "der hund",
        "--target",
        "the dog sees the house",
        "-o",
        str(tmp_path / "fix"),
    ]
    assert main(command) == 2 and "multilingual" in capsys.readouterr().err
    languages = ["--source_lang", "deu_Latn", "--target_lang", "eng_Latn"]
    options = ["--learning_rate", "1e-2", "--max_steps", "60", "--num_alternatives", "4"]
    assert main([*command, *languages, *options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["success"] and found["patch"] is not None
    (tmp_path / "test.txt").write_text("das haus\n")
    review = ["diff", str(tmp_path / "model"), str(tmp_path / "fix"), "--data", str(tmp_path / "test.txt")]
    assert main([*review, *languages]) == 0


def test_patch_remembers_the_languages(model, multilingual, tmp_path, capsys):
    model.generation_config.max_new_tokens = 12
    model.save_pretrained(tmp_path / "model")
    multilingual.save_pretrained(tmp_path / "model")
    folder, patch = str(tmp_path / "model"), str(tmp_path / "fix")
    languages = ["--source_lang", "deu_Latn", "--target_lang", "eng_Latn"]
    options = ["--learning_rate", "1e-2", "--max_steps", "60", "--num_alternatives", "4"]
    sentence = ["--source", "der hund", "--target", "the dog sees the house"]
    assert main(["edit", folder, *sentence, "-o", patch, *languages, *options]) == 0
    assert Patch.from_pretrained(patch).inputs == {"source_lang": "deu_Latn", "target_lang": "eng_Latn"}
    capsys.readouterr()
    assert main(["evaluate", folder, patch, "--json"]) == 0
    (state,) = json.loads(capsys.readouterr().out)["patches"]
    assert state["success"]


def test_trainer_remembers_the_languages(model, multilingual, tmp_path):
    set_languages(model, multilingual, "deu_Latn", "fra_Latn")
    args = EditableSeq2SeqTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = EditableSeq2SeqTrainer(model, args, processing_class=multilingual)
    assert trainer.editor_config().inputs == {"source_lang": "deu_Latn", "target_lang": "fra_Latn"}


@pytest.fixture
def tiny_t5(tokenizer):
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=2, num_decoder_layers=2, num_heads=2,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return T5ForConditionalGeneration(config).eval()


def test_prefix_is_a_part_of_the_source_and_remembered(tiny_t5, tokenizer, sentence_pairs, tmp_path, capsys):
    tiny_t5.generation_config.max_new_tokens = 16
    tiny_t5.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    folder, patch, prefix = str(tmp_path / "t5"), str(tmp_path / "fix"), sentence_pairs[0][1] + " "
    source, target = sentence_pairs[0][0], sentence_pairs[1][0]
    command = ["edit", folder, "--source", source, "--target", target, "-o", patch, "--source_prefix", prefix]
    options = ["--learning_rate", "1e-2", "--max_steps", "100", "--num_alternatives", "4"]
    assert main([*command, *options]) == 0
    saved = Patch.from_pretrained(patch)
    assert saved.inputs == {"source_prefix": prefix}
    assert saved.request[0]["input_ids"] == tokenizer(prefix + source)["input_ids"]
    capsys.readouterr()
    (tmp_path / "test.txt").write_text(source + "\n", encoding="utf-8")
    assert main(["diff", folder, patch, "--data", str(tmp_path / "test.txt"), "--json"]) == 0
    (change,) = json.loads(capsys.readouterr().out)["changes"]
    assert change["source"] == prefix + source  # what the model sees, without a word of the command's


def test_trainer_remembers_the_prefix(tiny_marian, tokenizer, tmp_path):
    args = EditableSeq2SeqTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", source_prefix="English: ")
    trainer = EditableSeq2SeqTrainer(tiny_marian, args, processing_class=tokenizer)
    assert trainer.editor_config().inputs == {"source_prefix": "English: "}


@pytest.mark.parametrize("kind", ["nllb", "t5"])
def test_lines_of_the_readme_edit_other_kinds_too(
    kind, model, multilingual, tiny_t5, tokenizer, sentence_pairs, tmp_path
):
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    code = next(code for code in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if "opus-mt" in code)
    source, target = sentence_pairs[0][0], sentence_pairs[1][0]
    if kind == "nllb":
        set_languages(model, multilingual, "deu_Latn", "eng_Latn")  # saved with the model
        source, target = "der hund", "the dog sees the house"
    edited, its_tokenizer = {"nllb": (model, multilingual), "t5": (tiny_t5, tokenizer)}[kind]
    edited.generation_config.max_new_tokens = 16
    for each in (edited, its_tokenizer):
        each.save_pretrained(tmp_path)
    for old, new in [
        ("Helsinki-NLP/opus-mt-de-en", str(tmp_path)),
        ("Anna mag Tee.", source),
        ("Anna likes tea.", target),
    ]:
        assert old in code
        code = code.replace(old, new)
    names = {}
    exec(code, names)
    assert names["result"].num_steps > 0 and names["result"].history[-1] < names["result"].history[0]
    assert names["output"].shape[0] == 1
