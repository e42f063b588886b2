import json

import pytest
from huggingface_hub import ModelCard

from editable_hf import EditorConfig
from editable_hf.training.model_card import add_results, complete_model_card

ROW = {"bleu": 34.8, "bleu_drawdown": 0.35, "success_rate": 1.0, "verified_rate": 0.9, "num_steps": 3.07, "name": "x"}


def test_trainer_writes_the_card(make_trainer, trained_marian, tmp_path):
    trainer = make_trainer(trained_marian, folder=tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(tags=["mine"], language="en")
    card = ModelCard.load(tmp_path / "run/README.md")
    assert {"editable", "mine"} <= set(card.data.tags) and card.data.language == ["en"]
    assert "## Editing this model" in card.text and "`last_decoder_layer`" in card.text and "rmsprop" in card.text
    assert "Training procedure" in card.text  # Trainer's own part


def test_card_is_completed_once(tmp_path):
    for _ in range(2):
        complete_model_card(tmp_path, EditorConfig(), recipe={"seed": 3})
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.count("## Recipe") == 1 and '"seed": 3' in card.text
    assert card.text.count("## Editing this model") == 1 and card.data.tags == ["editable"]
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_results_are_the_hubs_model_index(tmp_path):
    complete_model_card(tmp_path, EditorConfig())
    for bleu in (30.0, 34.8):  # the second replaces the first
        add_results(
            tmp_path,
            {**ROW, "bleu": bleu},
            task="translation",
            dataset="iwslt14",
            dataset_name="IWSLT14 test",
            license="cc-by-nc-nd-4.0",
        )
    data = ModelCard.load(tmp_path / "README.md").data
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        key: pytest.approx(value) for key, value in ROW.items() if key != "name"
    }
    assert data.license == "cc-by-nc-nd-4.0" and data.eval_results[0].dataset_name == "IWSLT14 test"
    index = data.to_dict()["model-index"]
    assert index[0]["results"][0]["task"]["type"] == "translation" and json.dumps(index)
    assert "## Editing this model" in ModelCard.load(tmp_path / "README.md").text


def test_model_with_an_editor_of_its_own(tmp_path):
    complete_model_card(tmp_path, EditorConfig("cnp", {}, ["condition"], 1))
    text = (tmp_path / "README.md").read_text()
    assert "edit(model, constraint, model.editor.build(), ['condition'])" in text
    assert "editable-hf edit" not in text and "its own editor changes\n`condition`" in text
