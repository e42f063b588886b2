from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from editable_hf import EditableSeq2SeqTrainingArguments
from editable_hf.experiments.translation_recipe import load_config
from editable_hf.models import TRANSFORMER_SIZES

CONFIGS = sorted(Path(__file__, "../../../recipes/configs/iwslt_de_en").resolve().glob("*.yaml"))


def test_configs_are_found():
    assert {path.stem for path in CONFIGS} >= {"demo", "small", "paper"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("smoke", [False, True])
def test_every_config_is_valid(path, smoke, tmp_path):
    config = load_config(str(path), smoke=smoke)
    assert config.model.size in TRANSFORMER_SIZES
    variants = [{**config.finetune, **config.editable, **changes} for changes in ({}, *config.variants.values())]
    for options in (config.pretrain, config.finetune, *variants):
        args = {**config.training, **options}
        assert EditableSeq2SeqTrainingArguments(str(tmp_path), seed=config.seed, **args).max_steps > 0
    assert all(isinstance(rate, float) and rate > 0 for rate in config.evaluation.learning_rates)
    assert smoke == config.output_dir.endswith("-smoke")


def test_paper_config_is_section_4_4():
    config = load_config(str(next(path for path in CONFIGS if path.stem == "paper")))
    assert (config.model.size, config.model.dropout, config.tokenizer.vocab_size) == ("iwslt_de_en", 0.3, 10_000)
    assert config.requests.num_alternatives == 32 and config.requests.temperature == 1.2
    assert config.requests.num_test == config.evaluation.num_edits == 1_000
    assert config.evaluation.learning_rates == [1e-3, 3e-4]
    assert config.evaluation.num_beams == 5
    assert config.training["max_tokens_per_batch"] == 4096


def test_defaults(write):
    config = load_config(write("seed: 3"))
    assert (config.output_dir, config.seed) == ("runs/iwslt_de_en", 3)
    assert config.data.source == "embedded" and config.evaluation.num_edits == 1_000
    assert config.training == config.pretrain == config.finetune == config.editable == config.variants == {}


def test_overrides(write):
    path = write("output_dir: a\nseed: 3\ndata: {source: x, max_train_samples: 5}\nmodel: {size: small}")
    config = load_config(path, output_dir="b", data="y", seed=0)
    assert (config.output_dir, config.seed, config.data.source, config.data.max_train_samples) == ("b", 0, "y", 5)
    smoke = load_config(path, smoke=True)
    assert (smoke.model.size, smoke.data.source, smoke.seed) == ("tiny", "x", 3)
    assert asdict(load_config(path)) == {
        **asdict(config),
        "output_dir": "a",
        "seed": 3,
        "data": {**asdict(config.data), "source": "x"},
    }


@pytest.mark.parametrize("section", ["pretrain", "finetune", "editable"])
def test_mistakes_in_what_is_trained(write, section):
    with pytest.raises(ValueError, match=f"section {section!r} must hold keys and values"):
        load_config(write(f"{section}: 5"))
    with pytest.raises(ValueError, match=f"section {section!r}: .*Did you mean 'max_steps'"):
        load_config(write(f"{section}: {{max_step: 5}}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("variants: {a b: {}}", "expected names of letters"),
        ("variants: {../a: {}}", "expected names of letters"),
        ("variants: {a: 3}", "expected names of letters"),
        ("variants: {a: {locality_coeff: 1.0}}", "variant 'a'.*Did you mean 'locality_coef'"),
        ("requests: {num_validation: 5}\nevaluation: {num_validation_edits: 6}", "makes 5 requests for that"),
    ],
)
def test_wrong_variants_and_validation(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(text))
