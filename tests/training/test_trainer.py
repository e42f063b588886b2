from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from editable_hf.training.checks import check_supported

pytestmark = pytest.mark.compat

EAGER = {"attn_implementation": "eager"}


def small_model(name, tokenizer):
    common = {"vocab_size": len(tokenizer), "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    shape = {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "max_position_embeddings": 40,
        "bos_token_id": 0,
    }
    torch.manual_seed(0)
    if name == "marian":
        return MarianMTModel(MarianConfig(**common, **shape, forced_eos_token_id=None, **EAGER))
    if name == "bart":
        return BartForConditionalGeneration(BartConfig(**common, **shape, forced_eos_token_id=None, **EAGER))
    config = T5Config(**common, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=2, num_heads=2, **EAGER)
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("name", ["marian", "bart", "t5"])
def test_three_steps(make_trainer, tokenizer, name):
    model = small_model(name, tokenizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = make_trainer(model, max_steps=3, edits_per_step=2, hyperparameter_learning_rate=0.1)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 3
    for entry in logs:
        terms = entry["base_loss"] + 0.1 * entry["edit_loss"] + 1.0 * entry["locality_loss"]
        assert entry["loss"] == pytest.approx(terms, rel=1e-3)
        assert 0 <= entry["edit_success_rate"] <= 1 and 0 <= entry["edit_num_steps"] <= 3
        assert entry["editor/learning_rate"] == 1e-2
    # Of both requests of the first step, on a model that knows nothing.
    assert logs[0]["base_loss"] > 3
    assert logs[0]["editor/beta"] != 0.5 and len({entry["editor/beta"] for entry in logs}) == 3
    after = {key: value for key, value in model.state_dict().items() if not key.startswith("editor.")}
    assert all(torch.isfinite(value).all() for value in after.values())
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and name in before]
    assert all(not torch.equal(before[name], after[name]) for name in trained)


def test_learned_values_have_their_own_group(make_trainer, trained_marian):
    trainer = make_trainer(
        trained_marian.float(),
        weight_decay=0.1,
        learning_rate=1e-3,
        hyperparameter_learning_rate=0.25,
        learn_edit_learning_rate=True,
    )
    optimizer = trainer.create_optimizer()
    assert trainer.create_optimizer() is optimizer
    *ordinary, own = optimizer.param_groups
    assert (own["lr"], own["weight_decay"]) == (0.25, 0.0)
    editor = list(trained_marian.editor.parameters())
    assert {id(p) for p in own["params"]} == {id(p) for p in editor} and len(editor) == 2
    rest = [p for group in ordinary for p in group["params"]]
    assert {id(p) for p in rest} == {id(p) for p in trained_marian.parameters() if p.requires_grad} - set(
        map(id, editor)
    )
    assert len(rest) == len({id(p) for p in rest})
    assert {group["weight_decay"] for group in ordinary} == {0.1, 0.0}
    assert {group["lr"] for group in ordinary} == {1e-3}


def test_editor_learns_at_its_own_rate(make_trainer, trained_marian):
    # Adam's first step is the learning rate itself, whatever the gradient.
    trainer = make_trainer(
        trained_marian.float(),
        max_steps=1,
        hyperparameter_learning_rate=0.25,
        edit_learning_rate=2e-3,  # takes more than one step, without which beta has no gradient
        learn_edit_learning_rate=True,
        lr_scheduler_type="constant",
    )
    trainer.train()
    assert trainer.state.log_history[0]["edit_num_steps"] > 1
    editor = trained_marian.editor
    assert abs(editor.beta.item()) == pytest.approx(0.25, rel=1e-4)
    assert abs(editor.learning_rate.item() - math.log(2e-3)) == pytest.approx(0.25, rel=1e-4)


def test_fixed_values_stay(make_trainer, trained_marian):
    trainer = make_trainer(trained_marian.float(), learn_edit_decays=False, learn_edit_learning_rate=False)
    trainer.train()
    assert list(trained_marian.editor.parameters()) == []
    assert trained_marian.editor.values() == {"learning_rate": 1e-2, "beta": 0.5}


def test_edit_dataset_is_optional(make_trainer, trained_marian):
    trainer = make_trainer(trained_marian.float(), edit_dataset=None)
    assert [parameter.requires_grad for parameter in trained_marian.editor.parameters()] == [False]
    trainer.train()
    (entry, *_) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert "edit_loss" not in entry and "editor/beta" not in entry
    assert trained_marian.editor.values() == {"learning_rate": 1e-2, "beta": 0.5}


def test_all_requests_are_drawn_once_an_epoch(make_trainer, trained_marian, requests_data):
    trainer = make_trainer(
        trained_marian.float(), max_steps=3, per_device_train_batch_size=2, gradient_accumulation_steps=2
    )
    seen, build = [], trainer.request_constraint
    trainer.request_constraint = lambda request: seen.append(request["id"]) or build(request)
    trainer.train()
    assert len(seen) == 6 and sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_model_in_eval_mode_has_no_edit_terms(make_trainer, trained_marian):
    trainer = make_trainer(trained_marian, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.request_constraint = None  # any edit would fail
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(trained_marian.eval(), batch, return_outputs=True)
        plain = trained_marian(**batch, use_cache=False)
    torch.testing.assert_close(loss, plain.loss)
    torch.testing.assert_close(outputs.logits, plain.logits)


def test_inputs_are_left_alone(make_trainer, trained_marian):
    trainer = make_trainer(trained_marian)
    trainer.current_gradient_accumulation_steps = 1
    batch = next(iter(trainer.get_train_dataloader()))
    before = {key: value.clone() for key, value in batch.items()}
    trainer.compute_loss(trained_marian.train(), batch)
    assert set(batch) == set(before) and all(torch.equal(batch[key], value) for key, value in before.items())


def test_modes_are_restored(make_trainer, trained_marian):
    trainer = make_trainer(trained_marian, edits_per_step=3)
    trainer.current_gradient_accumulation_steps = 1
    trained_marian.train()
    trained_marian.model.encoder.eval()
    before = {name: module.training for name, module in trained_marian.named_modules()}
    trainer.compute_loss(trained_marian, next(iter(trainer.get_train_dataloader())))
    assert {name: module.training for name, module in trained_marian.named_modules()} == before


def test_trainer_can_be_built_again_for_the_same_model(make_trainer, trained_marian):
    make_trainer(trained_marian.float(), max_steps=1).train()
    trainer = make_trainer(trained_marian, max_steps=1, edit_layers=["*"], learn_edit_decays=False)
    assert not [name for name in trainer.edit_parameters if name.startswith("editor.")]
    trainer.train()


def test_evaluation_with_generation(make_trainer, trained_marian, encoded_pairs, tokenizer):
    def exact(prediction):
        predictions, labels = prediction.predictions, prediction.label_ids
        predictions[predictions == -100] = labels[labels == -100] = tokenizer.pad_token_id
        texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (predictions, labels)]
        return {"exact": sum(map(str.__eq__, *texts)) / len(labels)}

    trainer = make_trainer(
        trained_marian,
        predict_with_generate=True,
        generation_max_length=30,
        generation_num_beams=2,
        label_smoothing_factor=0.1,
        per_device_eval_batch_size=8,
        parts={"eval_dataset": encoded_pairs.select(range(8)), "compute_metrics": exact},
    )
    trainer.request_constraint = None
    metrics = trainer.evaluate()
    batch = trainer.data_collator(encoded_pairs.select(range(8)).to_list())
    with torch.no_grad():
        logits = trained_marian(**batch, use_cache=False).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert metrics["eval_exact"] > 0.4
    trainer.args.predict_with_generate = False
    trainer.compute_metrics = None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)


# What is refused


def stub(**options):
    usual = {"fsdp": "", "deepspeed": None, "n_gpu": 1, "ddp_find_unused_parameters": None, "world_size": 1}
    return SimpleNamespace(**{**usual, **options})


def test_attention_without_a_double_backward_is_refused_with_the_remedy(trained_marian):
    config = SimpleNamespace(_attn_implementation="flash_attention_2")
    with pytest.raises(ValueError, match=r"'flash_attention_2' attention.*set_attn_implementation\(\"sdpa\"\)"):
        check_supported(SimpleNamespace(config=config), stub())
    check_supported(trained_marian, stub())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsdp": "full_shard"}, "FSDP and DeepSpeed are not supported.*accelerate launch --multi_gpu"),
        ({"deepspeed": "zero3.json"}, "FSDP and DeepSpeed are not supported"),
        ({"ddp_find_unused_parameters": True}, "take the editor's values for unused.*Leave it unset"),
        ({"n_gpu": 2}, "sees 2 GPUs and would use DataParallel.*CUDA_VISIBLE_DEVICES=0"),
    ],
)
def test_unsupported_parallelism_is_refused(trained_marian, options, message):
    check_supported(trained_marian, stub())
    with pytest.raises(ValueError, match=message):
        check_supported(trained_marian, stub(**options))


def test_unknown_layers_are_refused(make_trainer, trained_marian):
    with pytest.raises(ValueError, match="Layer 'decoder.layers.9' matches no parameter of MarianMTModel"):
        make_trainer(trained_marian, edit_layers=["decoder.layers.9"])


def test_request_dataset_without_columns_is_refused(make_trainer, trained_marian, requests_data):
    message = "`edit_dataset` lacks the columns alternatives, labels; it has .*make_edit_requests"
    with pytest.raises(ValueError, match=message):
        make_trainer(trained_marian, edit_dataset=requests_data.remove_columns(["alternatives", "labels"]))


def test_empty_request_dataset_is_refused(make_trainer, trained_marian, requests_data):
    with pytest.raises(ValueError, match="`edit_dataset` is empty"):
        make_trainer(trained_marian, edit_dataset=requests_data.select([]))


def test_distillation_keeps_to_the_starting_model(make_trainer, trained_marian, tmp_path):
    from safetensors import safe_open

    start = copy.deepcopy(trained_marian.state_dict())
    trainer = make_trainer(
        trained_marian, max_steps=2, base_loss="distillation", save_strategy="steps", save_steps=2, learning_rate=1e-2
    )
    trainer.train()
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert first["base_loss"] == 0.0
    assert second["base_loss"] > 1e-6
    teacher = trainer.teacher.state_dict()
    assert set(teacher) == set(start) and all(torch.equal(teacher[key], value) for key, value in start.items())
    assert not trainer.teacher.training and all(not p.requires_grad for p in trainer.teacher.parameters())
    with safe_open(tmp_path / "run/checkpoint-2/model.safetensors", "pt") as file:
        assert set(file.keys()) <= set(start)


def test_user_code_of_twenty_lines(tmp_path, sentence_pairs):
    from datasets import Dataset
    from transformers import MarianMTModel

    from editable_hf import (
        EditableSeq2SeqTrainer,
        EditableSeq2SeqTrainingArguments,
        EditorConfig,
        edit,
        edited,
        make_edit_requests,
        request_constraint,
    )
    from editable_hf.data.tokenizer import train_tokenizer
    from editable_hf.models import iwslt_transformer_config

    sources, targets = sentence_pairs
    tokenizer = train_tokenizer([*sources, *targets], vocab_size=100)
    model = MarianMTModel(iwslt_transformer_config(tokenizer, "tiny"))
    train = Dataset.from_dict(dict(tokenizer(sources, text_target=targets)))
    options = {"num_alternatives": 3, "progress": None}
    requests = make_edit_requests(model, tokenizer, sources[:2], targets=targets[:2], **options)
    args = EditableSeq2SeqTrainingArguments(str(tmp_path / "run"), max_steps=2, report_to="none", use_cpu=True)
    trainer = EditableSeq2SeqTrainer(
        model, args, train_dataset=train, edit_dataset=requests, processing_class=tokenizer
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))

    model = MarianMTModel.from_pretrained(tmp_path / "model", attn_implementation="eager")
    config = EditorConfig.from_pretrained(tmp_path / "model")
    result = edit(
        model, request_constraint(requests[0], model), config.build_editor(learning_rate=0.05), config.layers
    )
    assert result.success
    with edited(model, result) as patched:
        assert patched.generate(**tokenizer([sources[0]], return_tensors="pt"), max_new_tokens=4).shape[0] == 1
