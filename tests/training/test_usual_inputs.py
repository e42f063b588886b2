"""What users of `Seq2SeqTrainer` hand around: requests in several forms, rows without labels, models of any kind."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from gradient_recorder import GradientRecorder
from torch.profiler import ProfilerActivity, profile
from torch.testing import assert_close
from transformers import (
    BlenderbotSmallConfig,
    BlenderbotSmallForConditionalGeneration,
    DataCollatorForSeq2Seq,
    M2M100Config,
    M2M100ForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from editable_hf import EditableImageTrainer, EditableSeq2SeqTrainer, EditorConfig

pytestmark = pytest.mark.compat


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


class MapStyle:
    """The least that a torch dataset has."""

    def __init__(self, rows):
        self.rows = list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.mark.parametrize("form", [list, Dataset.to_dict, MapStyle], ids=["list", "dict", "torch"])
def test_requests_in_any_form_are_the_same(make_trainer, trained_marian, requests_data, form, tmp_path):
    expected = losses(make_trainer(copy.deepcopy(trained_marian)))
    trainer = make_trainer(trained_marian, edit_dataset=form(requests_data), folder=tmp_path / "other")
    assert losses(trainer) == expected


def test_rows_batched_by_tokens_are_a_dataset_or_a_list(make_trainer, trained_marian, encoded_pairs, tmp_path):
    rows = encoded_pairs.select(range(12))
    expected = losses(make_trainer(copy.deepcopy(trained_marian), train_dataset=rows, max_tokens_per_batch=60))
    more = [{**row, "text": "not for the model"} for row in rows]
    options = {"max_tokens_per_batch": 60, "folder": tmp_path / "list"}
    assert losses(make_trainer(copy.deepcopy(trained_marian), train_dataset=more, **options)) == expected
    with pytest.raises(ValueError, match="needs all of them, but `train_dataset` is a IterableDataset, read in order"):
        make_trainer(trained_marian, train_dataset=rows.to_iterable_dataset(), max_tokens_per_batch=60)
    with pytest.raises(ValueError, match=r"`max_tokens_per_batch` \(60\) replaces; leave one of them unset"):
        make_trainer(trained_marian, max_tokens_per_batch=60, auto_find_batch_size=True)


def test_metrics_of_generated_text_and_a_collator_of_ones_own(make_trainer, trained_marian, tokenizer, encoded_pairs):
    collate, batches = DataCollatorForSeq2Seq(tokenizer), []

    def own_collator(rows):
        batches.append(len(rows))
        return collate(rows)

    def exact(prediction):
        predictions, labels = (np.where(each < 0, 1, each) for each in (prediction.predictions, prediction.label_ids))
        texts = (tokenizer.batch_decode(each, skip_special_tokens=True) for each in (predictions, labels))
        return {"exact": np.mean([one == other for one, other in zip(*texts, strict=True)])}

    pairs = encoded_pairs.select(range(8)).to_list()  # in half of them the wanted text is that of another
    rows = [{**pair, "labels": pairs[number % 4]["labels"]} for number, pair in enumerate(pairs)]
    parts = {"data_collator": own_collator, "compute_metrics": exact, "eval_dataset": rows}
    options = {"predict_with_generate": True, "generation_max_length": 20, "metric_for_best_model": "exact"}
    trainer = make_trainer(copy.deepcopy(trained_marian), parts=parts, **options)
    metrics = trainer.evaluate()
    outputs = trained_marian.generate(**collate([{"input_ids": row["input_ids"]} for row in rows]), max_length=20)
    wanted = tokenizer.batch_decode([row["labels"] for row in rows], skip_special_tokens=True)
    said = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    assert metrics["eval_exact"] == np.mean([one == other for one, other in zip(said, wanted, strict=True)])
    assert 0 < metrics["eval_exact"] < 1 and "eval_loss" in metrics
    trainer.train()
    assert batches[0] == 8 and set(batches[1:]) == {4}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (
            lambda rows: DatasetDict(train=rows),
            r"one split as `edit_dataset`, got a DatasetDict of train; .*\['train'\]",
        ),
        (Dataset.to_iterable_dataset, "a length and rows by number, .* IterableDataset; make it a list"),
    ],
)
def test_requests_that_cannot_be_drawn_are_refused(make_trainer, trained_marian, requests_data, form, message):
    with pytest.raises(TypeError, match=message):
        make_trainer(trained_marian, edit_dataset=form(requests_data))


@pytest.mark.parametrize("own_collator", [False, True])
def test_predictions_of_rows_without_labels_are_those_of_the_stock_trainer(
    make_trainer, trained_marian, tokenizer, encoded_pairs, tmp_path, own_collator
):
    rows = encoded_pairs.select(range(6)).remove_columns("labels")
    options = {"predict_with_generate": True, "generation_max_length": 12, "report_to": "none", "use_cpu": True}
    stock = Seq2SeqTrainer(
        copy.deepcopy(trained_marian), Seq2SeqTrainingArguments(str(tmp_path), **options), processing_class=tokenizer
    )
    parts = {"data_collator": DataCollatorForSeq2Seq(tokenizer)} if own_collator else None
    trainer = make_trainer(trained_marian, parts=parts, **options)
    output = trainer.predict(rows)
    assert np.array_equal(output.predictions, stock.predict(rows).predictions) and output.label_ids is None
    assert "test_loss" not in output.metrics and "test_loss" in trainer.predict(encoded_pairs.select([0])).metrics


SHAPE = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "max_position_embeddings": 40,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "bos_token_id": 0,
}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (M2M100ForConditionalGeneration, M2M100Config),
        (BlenderbotSmallForConditionalGeneration, BlenderbotSmallConfig),
    ],
)
def test_models_that_do_not_say_how_labels_are_shifted(make_trainer, tokenizer, encoded_pairs, kind, config):
    torch.manual_seed(0)
    model = kind(config(vocab_size=len(tokenizer), decoder_start_token_id=2, dropout=0.0, **SHAPE))
    assert not hasattr(model, "prepare_decoder_input_ids_from_labels")
    batch = DataCollatorForSeq2Seq(tokenizer)([encoded_pairs[index] for index in range(4)])
    trainer = make_trainer(model)
    assert_close(trainer.compute_loss(model.eval(), batch), model(**batch).loss)  # which shifts them within
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("replay", [True, False])
def test_model_with_fused_attention_is_trained_as_it_is_loaded(make_trainer, trained_marian, tmp_path, replay):
    gradients, kinds = [], ("eager", "sdpa")
    for attention in kinds:
        model, recorder = copy.deepcopy(trained_marian), GradientRecorder()
        model.set_attn_implementation(attention)
        options = {"replay": replay, "edits_per_step": 2, "learn_edit_learning_rate": True, "learning_rate": 1e-5}
        make_trainer(model, folder=tmp_path / attention, callbacks=[recorder], **options).train()
        assert model.config._attn_implementation == attention
        gradients.append(recorder.steps)
    for step in zip(*gradients, strict=True):
        assert step[0].keys() == step[1].keys()
        for name, grad in step[0].items():
            assert_close(step[1][name], grad, rtol=1e-8, atol=1e-10, msg=name)


def test_base_forward_keeps_its_fused_attention(make_trainer, trained_marian):
    trained_marian.set_attn_implementation("sdpa")
    trainer = make_trainer(trained_marian.float(), max_steps=1)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        trainer.train()
    names = {event.key for event in seen.key_averages()}
    assert "aten::_scaled_dot_product_attention_math" in names  # in the edit
    assert any("flash_attention" in name for name in names)  # in what is differentiated once


def test_model_init_gives_each_run_a_model_with_an_editor(make_trainer, trained_marian, tmp_path):
    parts = {"model_init": lambda: copy.deepcopy(trained_marian)}
    trainer = make_trainer(None, parts=parts, learn_edit_learning_rate=True)
    first, of_first_run = trainer.model, losses(trainer)
    assert trainer.model is not first and trainer.model.editor is not first.editor
    assert of_first_run == losses(
        make_trainer(copy.deepcopy(trained_marian), folder=tmp_path / "model", learn_edit_learning_rate=True)
    )
    second = make_trainer(None, parts=parts, folder=tmp_path / "again", learn_edit_learning_rate=True)
    assert losses(second) == of_first_run
    trainer.save_model(str(tmp_path / "saved"))
    assert EditorConfig.from_pretrained(tmp_path / "saved").learned == dict(
        (name, value.item()) for name, value in trainer.model.editor.named_parameters()
    )


def test_arguments_default_as_in_trainer(trained_marian, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    trainer = EditableSeq2SeqTrainer(trained_marian)
    assert trainer.args.output_dir == "trainer_output" and trainer.args.edit_max_steps == 10


STOCK = {EditableSeq2SeqTrainer: Seq2SeqTrainer, EditableImageTrainer: Trainer}


@pytest.mark.parametrize("trainer", STOCK)
def test_signature_begins_as_that_of_the_stock_trainer(trainer):
    own, stock = ([*inspect.signature(kind.__init__).parameters] for kind in (trainer, STOCK[trainer]))
    assert own == [*(name for name in stock if name != "optimizer_cls_and_kwargs"), "edit_dataset"]
