"""What users of `Trainer` set or wrap around a model, for each of the three trainers: it works or is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from causal_models import causal_model
from datasets import DatasetDict
from gradient_recorder import GradientRecorder
from tiny_images import image_requests, image_rows, tiny_vit
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import EarlyStoppingCallback, MarianMTModel, TrainingArguments
from transformers.optimization import Adafactor

from editable_hf import EditableCausalLMTrainer, EditableCausalLMTrainingArguments, EditorConfig

# The first token of these requests is what the model says least, so that edits take steps.
PROMPTS = [{"input_ids": [3 + i, 4 + i, 9, 7 + i], "labels": [3 + i, 4 + i, 9, 7 + i]} for i in range(8)]
WANTED = [
    {"input_ids": [3 + i, 5, 8], "labels": [target, 2], "alternatives": [[12, 2], [13 + i, 4]]}
    for i, target in enumerate((10, 30, 21, 17))
]


class Kind:
    """One trainer: how to build it, its model in float64, and rows for it."""

    def __init__(self, name, build, model, rows):
        self.name, self.build, self.model, self.rows = name, build, model, rows

    def rows_as(self, dtype):
        rows = list(self.rows)
        if self.name == "images":
            rows = [{**row, "pixel_values": row["pixel_values"].to(dtype)} for row in rows]
        return rows


@pytest.fixture(params=["translation", "prompts", "images"])
def kind(request, make_trainer, make_image_trainer, trained_marian, encoded_pairs, tmp_path):
    def prompts(model, *, folder=None, train_dataset=None, callbacks=None, parts=None, **options):
        usual = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "edit_learning_rate": 1e-2}
        quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no"}
        args = EditableCausalLMTrainingArguments(
            str(folder or tmp_path / "run"), **{**usual, **quiet, "edit_max_steps": 3, **options}
        )
        train_dataset = PROMPTS if train_dataset is None else train_dataset
        kept = {"train_dataset": train_dataset, "edit_dataset": WANTED, "callbacks": callbacks, **(parts or {})}
        return EditableCausalLMTrainer(model, args, **kept)

    def images(model, **options):
        own = {"edit_dataset": image_requests(), "edit_layers": ["last_block"], "edit_learning_rate": 1e-2}
        return make_image_trainer(model, **{**own, **options})

    made = {
        "translation": lambda: (make_trainer, lambda: copy.deepcopy(trained_marian), encoded_pairs.select(range(12))),
        "prompts": lambda: (prompts, lambda: causal_model("gpt2").double(), PROMPTS),
        "images": lambda: (images, tiny_vit, image_rows(12)),
    }
    return Kind(request.param, *made[request.param]())


def logs(trainer):
    trainer.train()
    return [entry for entry in trainer.state.log_history if "base_loss" in entry]


def gradients(kind, model, folder, **options):
    recorder = GradientRecorder()
    found = logs(kind.build(model, folder=folder, callbacks=[recorder], **{"max_steps": 3, **options}))
    assert any(entry["edit_num_steps"] > 0 for entry in found)
    return recorder.steps


def assert_same_gradients(actual, expected, **tolerances):
    for step, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert one.keys() == other.keys()
        for name, grad in other.items():
            assert_close(one[name], grad, msg=f"{step}: {name}", **tolerances)


@pytest.mark.parametrize(
    ("dtype", "bf16"), [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)], ids=str
)
def test_weights_in_half_precision(kind, dtype, bf16, tmp_path):
    expected, actual = (
        logs(
            kind.build(kind.model().to(each), train_dataset=kind.rows_as(each), folder=tmp_path / str(each), bf16=auto)
        )
        for each, auto in ((torch.float32, False), (dtype, bf16))
    )
    assert actual[0]["edit_num_steps"] == expected[0]["edit_num_steps"]
    for term in ("base_loss", "edit_loss"):  # of the first step, before weights were rounded
        assert actual[0][term] == pytest.approx(expected[0][term], rel=0.05, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_losses_of_half_precision_are_summed_in_float32(kind, dtype):
    trainer = kind.build(kind.model().to(dtype), train_dataset=kind.rows_as(dtype))
    batch = next(iter(trainer.get_train_dataloader()))
    model = trainer.model.eval()
    with torch.no_grad():
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    assert loss.dtype == torch.float32
    labels = trainer.aligned(batch["labels"])
    assert_close(loss, F.cross_entropy(outputs.logits.double().flatten(0, -2), labels.flatten()).float())


# transformers renamed the arguments and the method between 5.21 and 5.24.
_NEW = "activation_checkpointing" in {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if _NEW else "gradient_checkpointing"


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("by_model", [False, True], ids=["arguments", "model"])
def test_gradient_checkpointing_changes_no_gradient(kind, by_model, use_reentrant, tmp_path):
    expected = gradients(kind, kind.model(), tmp_path / "plain")
    model, options, how = kind.model(), {}, {"use_reentrant": use_reentrant}
    if by_model:
        getattr(model, f"{CHECKPOINTING}_enable")(**{f"{CHECKPOINTING}_kwargs": how})
    else:
        options = {CHECKPOINTING: True, f"{CHECKPOINTING}_kwargs": how}
    assert_same_gradients(
        gradients(kind, model, tmp_path / "checkpointed", **options), expected, rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize("kind", ["prompts", "images"], indirect=True)  # a Marian compiles for half a minute
def test_torch_compile_compiles_the_base_forward_alone(kind, tmp_path):
    plain, compiled = {"reuse_base_forward": False}, {"torch_compile": True, "torch_compile_backend": "eager"}
    expected = gradients(kind, kind.model(), tmp_path / "plain", max_steps=2, **plain)
    actual = gradients(kind, kind.model(), tmp_path / "compiled", max_steps=2, **compiled)
    assert_same_gradients(actual, expected, rtol=1e-8, atol=1e-10)


def compiled_model(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def compiled_forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


@pytest.mark.parametrize("form", [compiled_model, compiled_in_place, compiled_forward])
def test_compiled_model_is_refused(kind, form):
    with pytest.raises(ValueError, match="compiled already.*before `torch.compile`.*`torch_compile=True`"):
        kind.build(form(kind.model()))


def test_adafactor_trains_the_editor_at_its_own_rate(kind):
    rates = {"hyperparameter_learning_rate": 0.1, "learn_edit_learning_rate": True}
    trainer = kind.build(kind.model(), optim="adafactor", lr_scheduler_type="constant", **rates)
    last = logs(trainer)[-1]
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, Adafactor) and optimizer.param_groups[-1]["lr"] == 0.1
    assert last["edit_num_steps"] > 0 and last["editor/learning_rate"] != pytest.approx(1e-2)


def test_best_checkpoint_comes_back_with_its_editor_when_training_stops_early(kind):
    trainer = kind.build(
        kind.model(),
        parts={"eval_dataset": kind.rows},
        callbacks=[EarlyStoppingCallback(1)],
        **{"max_steps": 9, "learning_rate": 0.5, "hyperparameter_learning_rate": 0.1},
        **{"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
        **{"load_best_model_at_end": True, "learn_edit_learning_rate": True},
    )
    entries = logs(trainer)
    assert 2 <= len(entries) < 9
    best = EditorConfig.from_pretrained(trainer.state.best_model_checkpoint)
    assert best.learned == {name: value.item() for name, value in trainer.model.editor.named_parameters()}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_batch_that_memory_is_too_small_for_is_halved(kind, tmp_path, monkeypatch):
    size = 3
    expected = logs(kind.build(kind.model(), folder=tmp_path / "small", per_device_train_batch_size=size))
    trainer = kind.build(
        kind.model(), folder=tmp_path / "found", per_device_train_batch_size=4, auto_find_batch_size=True
    )
    add_edit_terms = trainer.add_edit_terms

    def out_of_memory(base, batch):
        total = add_edit_terms(base, batch)
        if len(next(iter(batch.inputs.values()))) > size:  # after the edits, as when the backward needs too much
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return total

    monkeypatch.setattr(trainer, "add_edit_terms", out_of_memory)
    monkeypatch.setattr("gc.collect", lambda *_: 0)  # accelerate's, again and again, take seconds
    found = logs(trainer)
    assert [{k: entry[k] for k in ("loss", "edit_loss", "editor/beta")} for entry in found] == [
        {k: entry[k] for k in ("loss", "edit_loss", "editor/beta")} for entry in expected
    ]


class Hub:
    """Takes what a trainer pushes, and keeps the files of each push."""

    def __init__(self):
        self.pushes = []

    def create_repo(self, name, **options):
        return SimpleNamespace(repo_id=f"me/{name}")

    def upload_folder(self, folder_path, **options):
        self.pushes.append({path.name: path.read_text() for path in Path(folder_path).glob("*.json")})
        return SimpleNamespace(done=lambda: True, result=lambda: None)


def test_what_is_pushed_during_training_has_the_editor_of_that_moment(kind, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    rates = {"hyperparameter_learning_rate": 0.1, "learn_edit_learning_rate": True}
    trainer = kind.build(kind.model(), push_to_hub=True, save_strategy="steps", save_steps=1, **rates)
    entries = logs(trainer)
    assert len(hub.pushes) == 2 and all("config.json" in files for files in hub.pushes)
    learned = [json.loads(files["editor_config.json"])["hyperparameters"]["learning_rate"] for files in hub.pushes]
    assert learned == pytest.approx([entry["editor/learning_rate"] for entry in entries]) and len(set(learned)) == 2


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_rows_that_come_one_by_one(kind):
    assert len(logs(kind.build(kind.model(), train_dataset=Stream(list(kind.rows))))) == 2


def test_further_columns_stay_behind(kind, tmp_path):
    expected = logs(kind.build(kind.model(), train_dataset=list(kind.rows)))
    rows = [{**row, "id": number, "name": "row", "thing": object()} for number, row in enumerate(kind.rows)]
    found = logs(kind.build(kind.model(), train_dataset=rows, folder=tmp_path / "more"))
    assert [entry["loss"] for entry in found] == [entry["loss"] for entry in expected]


def test_dict_of_columns_is_the_same(kind, tmp_path):
    rows, dtype = kind.rows_as(torch.float32), torch.float32
    expected = logs(kind.build(kind.model().to(dtype), train_dataset=rows))
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    found = logs(kind.build(kind.model().to(dtype), train_dataset=columns, folder=tmp_path / "columns"))
    assert [entry["loss"] for entry in found] == pytest.approx([entry["loss"] for entry in expected])


@pytest.mark.parametrize("cut", [1, None], ids=["generator", "splits"])
def test_what_holds_no_rows_is_refused(kind, cut, encoded_pairs):
    given = (row for row in kind.rows) if cut else DatasetDict(train=encoded_pairs)
    with pytest.raises(TypeError, match="Expected (one split as )?`train_dataset`"):
        kind.build(kind.model(), train_dataset=given)


def test_batches_without_labels_are_refused(kind):
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in kind.rows]
    trainer = kind.build(
        kind.model(), train_dataset=rows, parts={"data_collator": lambda rows: {"pixel_values": rows}}
    )
    with pytest.raises(ValueError, match=r"batches with `labels` .* got \['pixel_values'\]"):
        trainer.train()


# peft


def lora(model, **options):
    targets = {MarianMTModel: ["q_proj", "v_proj"]}.get(type(model), ["c_attn", "q_proj"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, **options))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore:.is_gradient_checkpointing:FutureWarning")
def test_lora_is_trained_and_saved_with_its_editor(kind, tmp_path):
    plain = {"replay": False, "reuse_base_forward": False}
    expected = gradients(kind, lora(kind.model()), tmp_path / "plain", learn_edit_learning_rate=True, **plain)
    base = kind.model()
    before = copy.deepcopy(base.state_dict())
    recorder = GradientRecorder()
    trainer = kind.build(
        model := lora(base), callbacks=[recorder], max_steps=3, learn_edit_learning_rate=True, folder=tmp_path / "lora"
    )
    trainer.train()
    assert_same_gradients(recorder.steps, expected, rtol=1e-5, atol=1e-8)  # Adam divides rounding by rounding
    assert {"lora" in name or name.startswith("editor.") for name in recorder.steps[0]} == {True}
    trainer.save_model()
    config = EditorConfig.from_pretrained(tmp_path / "lora")
    assert config.learned == {name: value.item() for name, value in model.editor.named_parameters()}
    loaded = peft.PeftModel.from_pretrained(fresh := kind.model(), str(tmp_path / "lora"))
    own = dict(loaded.named_parameters())
    assert all(torch.equal(own[name], value) for name, value in model.named_parameters() if "lora" in name)
    assert all(torch.equal(value, before[name]) for name, value in kind.model().state_dict().items())
    assert fresh is loaded.get_base_model()


def test_virtual_tokens_are_refused(tmp_path):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(causal_model("llama"), config)
    args = EditableCausalLMTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="PROMPT_TUNING, which puts virtual tokens before each text.*such as LoRA"):
        EditableCausalLMTrainer(model, args, train_dataset=PROMPTS)
