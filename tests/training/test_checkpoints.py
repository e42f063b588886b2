from __future__ import annotations

import copy
import json
import logging

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from editable_hf import EditorConfig

pytestmark = pytest.mark.compat


@pytest.fixture
def dropout_marian(trained_marian):
    for module in trained_marian.modules():
        if "dropout" in vars(module):
            module.dropout = 0.2
    return trained_marian.float()


def steps_of(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def state_of(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal_states(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("max_tokens", "accumulation", "checkpoint"),
    [(0, 1, 2), (0, 1, 3), (0, 2, 1), (50, 1, 2), (50, 1, "epoch")],
    ids=["mid-epoch", "epoch-end", "accumulated", "tokens-mid-epoch", "tokens-epoch-end"],
)
def test_resumed_run_is_the_uninterrupted_one(
    make_trainer, dropout_marian, tmp_path, max_tokens, accumulation, checkpoint
):
    start = copy.deepcopy(dropout_marian)
    options = {
        "max_steps": 8 if max_tokens else 5,
        "save_strategy": "steps",
        "save_steps": 1,
        "learn_edit_learning_rate": True,
        "edit_learning_rate": 1e-3,
        "hyperparameter_learning_rate": 0.05,
        "max_tokens_per_batch": max_tokens,
        "gradient_accumulation_steps": accumulation,
        "per_device_train_batch_size": 4,
    }
    whole = make_trainer(dropout_marian, folder=tmp_path / "whole", **options)
    steps_per_epoch = len(whole.get_train_dataloader())
    checkpoint = steps_per_epoch if checkpoint == "epoch" else checkpoint
    assert steps_per_epoch < options["max_steps"] * accumulation
    whole.train()
    torch.manual_seed(123)
    rest = make_trainer(start, folder=tmp_path / "rest", **options)
    rest.train(resume_from_checkpoint=str(tmp_path / f"whole/checkpoint-{checkpoint}"))
    assert rest.state.global_step == options["max_steps"]
    assert steps_of(rest) == steps_of(whole)
    assert len({entry["edit_loss"] for entry in steps_of(whole)}) > 1
    assert equal_states(state_of(rest), state_of(whole))
    values = rest.model.editor.values()
    assert values == whole.model.editor.values() and values["beta"] != 0.5
    mine, theirs = rest.optimizer.state_dict(), whole.optimizer.state_dict()
    assert mine["param_groups"] == theirs["param_groups"]
    assert mine["state"].keys() == theirs["state"].keys()
    for index, state in mine["state"].items():
        assert all(torch.equal(value, theirs["state"][index][key]) for key, value in state.items())


def test_checkpoint_weights_are_the_ordinary_models(make_trainer, dropout_marian, tmp_path, transformers_log):
    expected = set(copy.deepcopy(dropout_marian).state_dict())
    trainer = make_trainer(
        dropout_marian,
        save_strategy="steps",
        save_steps=2,
        learn_edit_learning_rate=True,
        hyperparameter_learning_rate=0.1,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    dropout_marian.save_pretrained(tmp_path / "by-hand")
    for folder in (tmp_path / "run/checkpoint-2", tmp_path / "final", tmp_path / "by-hand"):
        with safe_open(folder / "model.safetensors", "pt") as file:
            keys = set(file.keys())
        assert keys <= expected and not [key for key in keys if "editor" in key]
        with transformers_log() as messages:
            loaded, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
        assert messages == []
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert {name: p for name, p in loaded.named_parameters()}.keys() == {
            name for name, _ in dropout_marian.named_parameters() if not name.startswith("editor.")
        }
        own = dict(dropout_marian.named_parameters())
        assert all(torch.equal(parameter, own[name]) for name, parameter in loaded.named_parameters())
    assert (tmp_path / "run/checkpoint-2/editor_config.json").exists()


def test_saved_folder_is_complete(make_trainer, dropout_marian, tmp_path, tokenizer, sentence_pairs):
    trainer = make_trainer(
        dropout_marian, edit_layers=["decoder.layers.1.fc1", "*fc2*"], edit_length_penalty=0.6, editor="adam"
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    config = EditorConfig.from_pretrained(tmp_path / "model")
    assert config == trainer.editor_config()
    assert (config.editor, config.max_steps, config.length_penalty) == ("adam", 3, 0.6)
    assert config.layers == ["decoder.layers.1.fc1", "*fc2*"]
    assert config.hyperparameters == dropout_marian.editor.values()
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert reloaded(sentence_pairs[0][0])["input_ids"] == tokenizer(sentence_pairs[0][0])["input_ids"]


@pytest.mark.parametrize("learned", [True, False])
def test_built_editor_has_the_trained_values(make_trainer, dropout_marian, tmp_path, learned):
    trainer = make_trainer(
        dropout_marian,
        hyperparameter_learning_rate=0.2,
        edit_learning_rate=3e-3,
        learn_edit_learning_rate=learned,
    )
    trainer.train()
    trainer.save_model()
    editor = dropout_marian.editor
    assert (editor.values()["learning_rate"] != pytest.approx(3e-3)) == learned and editor.values()["beta"] != 0.5
    config = EditorConfig.from_pretrained(tmp_path / "run")
    saved, trained = config.build_editor(), editor.build()
    params = {"weight": torch.zeros(3)}
    grads = [{"weight": torch.tensor([1.0, -2.0, 0.1])}, {"weight": torch.tensor([0.5, 3.0, 0.0])}]
    states = saved.init(params), trained.init(params)
    for grad in grads:
        (mine, first), (theirs, second) = saved.update(grad, states[0]), trained.update(grad, states[1])
        torch.testing.assert_close(mine["weight"], theirs["weight"].detach(), rtol=1e-6, atol=0)
        states = first, second
    (update, _) = config.build_editor(learning_rate=1.0).update(grads[0], saved.init(params))
    torch.testing.assert_close(update["weight"], -grads[0]["weight"].sign(), rtol=1e-4, atol=1e-4)


def test_best_model_brings_its_editor(make_trainer, dropout_marian, tmp_path, encoded_pairs):
    values = iter([1.0, 3.0, 2.0, 0.0])  # losses of so few updates depend on the release of torch
    trainer = make_trainer(
        dropout_marian,
        max_steps=4,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="given",
        greater_is_better=True,
        hyperparameter_learning_rate=0.1,
        learn_edit_learning_rate=True,
        parts={
            "eval_dataset": encoded_pairs.select(range(12, 24)),
            "compute_metrics": lambda prediction: {"given": next(values)},
        },
    )
    trainer.train()
    folder = trainer.state.best_model_checkpoint
    assert folder.endswith("checkpoint-2")
    best = EditorConfig.from_pretrained(folder)
    last = EditorConfig.from_pretrained(tmp_path / "run/checkpoint-4")
    assert dropout_marian.editor.values() == best.hyperparameters != last.hyperparameters
    weights = AutoModelForSeq2SeqLM.from_pretrained(folder).state_dict()
    own = dropout_marian.state_dict()
    assert all(torch.equal(own[name], value) for name, value in weights.items())


def test_resume_without_editor_config_says_what_is_wrong(make_trainer, dropout_marian, tmp_path):
    make_trainer(dropout_marian, save_strategy="steps", save_steps=1, max_steps=1).train()
    (tmp_path / "run/checkpoint-1/editor_config.json").unlink()
    again = make_trainer(dropout_marian, max_steps=2)
    with pytest.raises(ValueError, match=r"learns \['beta'\], .*checkpoint-1 holds \[\] \(no editor_config.json\)"):
        again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))


def test_resume_with_other_learned_values_says_what_is_wrong(make_trainer, dropout_marian, tmp_path):
    make_trainer(dropout_marian, save_strategy="steps", save_steps=1, max_steps=1).train()
    again = make_trainer(dropout_marian, max_steps=2, learn_edit_learning_rate=True)
    with pytest.raises(ValueError, match=r"learns \['beta', 'learning_rate'\], .* holds \['beta'\]"):
        again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))


# editor_config.json by itself


def test_round_trip(tmp_path):
    config = EditorConfig(
        "adam",
        {"learning_rate": 0.1, "beta1": 0.3, "beta2": 0.7},
        ["*"],
        4,
        0.5,
        {"source_prefix": "to German: "},
        {"beta1": -0.2},
    )
    config.save_pretrained(tmp_path)
    assert EditorConfig.from_pretrained(tmp_path) == config
    assert [path.name for path in tmp_path.iterdir()] == ["editor_config.json"]


def test_absent(tmp_path):
    assert EditorConfig.find(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="was not trained to be editable"):
        EditorConfig.from_pretrained(tmp_path)


def test_unknown_keys_are_named_and_ignored(tmp_path, caplog):
    EditorConfig(max_steps=7).save_pretrained(tmp_path)
    path = tmp_path / "editor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "momentum_2": 1, "color": "red"}))
    with caplog.at_level(logging.WARNING, logger="editable_hf"):
        config = EditorConfig.from_pretrained(tmp_path)
    assert config == EditorConfig(max_steps=7)
    (record,) = caplog.records
    assert "does not know and ignores: color, momentum_2" in record.getMessage()


def test_known_keys_give_no_warning(tmp_path, caplog):
    EditorConfig().save_pretrained(tmp_path)
    EditorConfig.from_pretrained(tmp_path)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"editor": "rms', "editor_config.json is not valid JSON"),
        ("", "editor_config.json is not valid JSON"),
        ("[1]", "editor_config.json must hold a JSON object, got list"),
    ],
)
def test_broken_file(tmp_path, content, message):
    (tmp_path / "editor_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        EditorConfig.from_pretrained(tmp_path)
