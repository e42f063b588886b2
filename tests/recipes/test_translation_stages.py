from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import AutoTokenizer, MarianMTModel

from editable_hf.data.requests import NoEditRequestsError
from editable_hf.experiments import translation_stages
from editable_hf.experiments.stages import Stage
from editable_hf.experiments.translation_recipe import RequestOptions, load_config

DEMO = Path(__file__, "../../../recipes/configs/iwslt_de_en/demo.yaml").resolve()


@pytest.fixture
def config(tmp_path):
    config = load_config(str(DEMO), output_dir=str(tmp_path), smoke=True)
    return replace(
        config,
        tokenizer=replace(config.tokenizer, vocab_size=100),
        data=replace(config.data, source_lang="de", target_lang="nl"),
        training={**config.training, "use_cpu": True, "disable_tqdm": True},
    )


@pytest.fixture
def parts(config, tmp_path, sentence_pairs):
    """The stages "data" and "tokenizer"."""
    pairs = Dataset.from_dict(dict(zip(("source", "target"), sentence_pairs, strict=True)))
    splits = {"train": range(150), "validation": range(150, 160), "test": range(160, 170)}
    data, tokenizer = (Stage(tmp_path / name, name) for name in ("data", "tokenizer"))
    DatasetDict({name: pairs.select(rows) for name, rows in splits.items()}).save_to_disk(data.folder / "splits")
    translation_stages.prepare_tokenizer(config, data, tokenizer.folder)
    return [data, tokenizer]


def test_tokenizer_knows_its_languages(parts):
    tokenizer = AutoTokenizer.from_pretrained(parts[1].folder)
    assert (tokenizer.source_lang, tokenizer.target_lang) == ("de", "nl")


@pytest.mark.parametrize("beams", [1, 3])
def test_settings_of_the_evaluation_are_saved_with_the_model(config, parts, tmp_path, beams):
    config = replace(config, evaluation=replace(config.evaluation, num_beams=beams))
    options = {**config.training, "max_steps": 2, "save_steps": 1}
    translation_stages.train_model(config, parts, None, None, options, tmp_path / "model")
    for folder in ("model", "model/checkpoints/checkpoint-2"):
        model = MarianMTModel.from_pretrained(tmp_path / folder)
        saved = model.generation_config
        assert (saved.num_beams, saved.early_stopping) == (beams, beams > 1)
        assert saved.max_new_tokens == config.model.max_length - 1
        model.save_pretrained(tmp_path / "again")


def save_requests(config, parts, tmp_path, monkeypatch, trained_marian, empty):
    """Runs the stage in chunks of two sources; those of `empty` (by first source) give no request."""

    def fake(model, tokenizer, sources, *, first_id, progress, **kwargs):
        if progress.startswith("train") and first_id in empty:
            raise NoEditRequestsError("None of the sources gives an edit request.")
        return Dataset.from_list([{"id": first_id + row, "source": source} for row, source in enumerate(sources)])

    monkeypatch.setattr(translation_stages, "make_edit_requests", fake)
    monkeypatch.setattr(translation_stages, "_CHUNK", 2)
    trained_marian.save_pretrained(tmp_path / "pretrained")
    (tmp_path / "requests").mkdir()
    config = replace(config, requests=RequestOptions(num_train=5, num_test=1, min_bleu=0.0))
    translation_stages.prepare_requests(config, parts, Stage(tmp_path / "pretrained", ""), tmp_path / "requests")
    return load_from_disk(tmp_path / "requests/train")["id"]


@pytest.mark.parametrize(("empty", "ids"), [([], [0, 1, 2, 3, 4]), ([4], [0, 1, 2, 3]), ([0, 2], [4])])
def test_chunks_without_a_request_are_left_out(config, parts, tmp_path, monkeypatch, trained_marian, empty, ids):
    assert list(save_requests(config, parts, tmp_path, monkeypatch, trained_marian, empty)) == ids


def test_no_request_in_any_chunk(config, parts, tmp_path, monkeypatch, trained_marian):
    with pytest.raises(NoEditRequestsError):
        save_requests(config, parts, tmp_path, monkeypatch, trained_marian, [0, 2, 4])


@pytest.mark.parametrize(
    ("bleu", "drawdown", "chosen"),
    [
        ((20.0, 19.8, 19.7), (2.0, 0.5, 0.4), "b"),  # both are close enough: the more local one
        ((20.0, 19.8, 19.6), (2.0, 0.5, 0.4), "a"),
        ((20.0, 19.6, 19.5), (0.1, 0.5, 0.4), "a"),  # none is: the better one
        ((20.0, 21.0, 22.0), (0.1, 0.5, 0.6), "a"),  # the baseline itself is no choice
    ],
)
def test_choice_on_validation_data(bleu, drawdown, chosen):
    names = ("baseline", "a", "b")
    rows = [{"name": n, "bleu": b, "bleu_drawdown": d} for n, b, d in zip(names, bleu, drawdown, strict=True)]
    assert translation_stages.choose_editable(rows, max_bleu_loss=0.3) == chosen


def test_model_that_learned_nothing_ends_the_recipe(config, parts, tmp_path, trained_marian):
    config = replace(config, requests=replace(config.requests, min_bleu=101.0))
    trained_marian.float().save_pretrained(tmp_path / "pretrained")
    pretrained = Stage(tmp_path / "pretrained", "pretrained")
    with pytest.raises(ValueError, match=r"reach 101 BLEU \(`min_bleu`.*but it has .* on 10 validation sentences"):
        translation_stages.prepare_requests(config, parts, pretrained, tmp_path / "requests")
