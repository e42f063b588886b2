from __future__ import annotations

import copy

import pytest
import reference
import torch
from gradient_recorder import GradientRecorder
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from editable_hf.core import constraints
from editable_hf.data.requests import request_constraint
from editable_hf.experiments.timing import count_kernels

OPTIONS = {"max_grad_norm": 0.0, "lr_scheduler_type": "constant", "save_strategy": "no"}


def relative_error(actual, expected):
    return max(
        ((actual[name] - grad).norm() / grad.norm().clamp(min=1e-12)).item()
        for name, grad in expected.items()
        if grad is not None and grad.norm() > 1e-10
    )


@pytest.fixture
def uneven_rows(encoded_pairs):
    """Eight rows, three of them cut short, so that micro-batches hold different numbers of target tokens."""
    rows = encoded_pairs.to_list()[:8]
    for index, length in ((1, 3), (4, 2), (6, 5)):
        rows[index]["labels"] = rows[index]["labels"][:length]
    return type(encoded_pairs).from_list(rows)


@pytest.mark.parametrize("editable", [True, False])
@pytest.mark.parametrize(("num_rows", "accumulation"), [(8, 4), (4, 4), (8, 2)])
def test_accumulated_gradient_is_the_big_batchs(
    make_trainer, trained_marian, uneven_rows, requests_data, editable, num_rows, accumulation
):
    rows = uneven_rows.select(range(num_rows))
    # With 4 rows the epoch ends after 2 of the 4 micro-batches.
    gradients, losses = [], []
    for micro, steps in ((num_rows, 1), (8 // accumulation, accumulation)):
        recorder = GradientRecorder()
        trainer = make_trainer(
            copy.deepcopy(trained_marian),
            train_dataset=rows,
            edit_dataset=requests_data.select([1]) if editable else None,
            callbacks=[recorder],
            max_steps=1,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=steps,
            label_smoothing_factor=0.1,
            edit_learning_rate=1e-3,
            edit_coef=0.7,
            learn_edit_learning_rate=True,
            **OPTIONS,
        )
        trainer.model.editor.double()
        trainer.train()
        gradients.append(recorder.steps[0])
        losses.append(trainer.state.log_history[0])
    big, small = gradients
    assert set(big) == set(small)
    assert ("editor.beta" in big) == editable
    if editable:
        assert losses[0]["edit_num_steps"] == losses[1]["edit_num_steps"] > 1
        assert losses[0]["edit_loss"] > 0 and losses[0]["locality_loss"] > 0 and big["editor.learning_rate"] != 0
        for key in ("base_loss", "edit_loss", "locality_loss"):
            assert losses[1][key] == pytest.approx(losses[0][key], rel=1e-6)
    error = relative_error(small, big)
    print(f"largest relative error of a gradient: {error:.1e}")
    assert error < 1e-6
    assert losses[1]["loss"] == pytest.approx(losses[0]["loss"], rel=1e-6)
    assert losses[1]["grad_norm"] == pytest.approx(losses[0]["grad_norm"], rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_base_loss_is_the_stock_trainers(make_trainer, trained_marian, uneven_rows, tokenizer, tmp_path, smoothing):
    trainer = make_trainer(trained_marian, edit_dataset=None, label_smoothing_factor=smoothing)
    args = Seq2SeqTrainingArguments(
        str(tmp_path / "stock"), report_to="none", use_cpu=True, label_smoothing_factor=smoothing
    )
    stock = Seq2SeqTrainer(
        copy.deepcopy(trained_marian), args, data_collator=DataCollatorForSeq2Seq(tokenizer, model=trained_marian)
    )
    batch = trainer.data_collator(uneven_rows.to_list())
    loss, stock_loss = (
        trainer.compute_loss(trainer.model.train(), batch),
        stock.compute_loss(stock.model.train(), batch),
    )
    tolerance = 1e-6 if smoothing else 1e-12  # the stock smoother sums in float32
    assert loss.item() == pytest.approx(stock_loss.item(), rel=tolerance)
    loss.backward()
    stock_loss.backward()
    expected = {name: p.grad for name, p in stock.model.named_parameters()}
    assert relative_error({name: p.grad for name, p in trainer.model.named_parameters()}, expected) < tolerance


def test_own_loss_function_gets_the_token_count(make_trainer, trained_marian, uneven_rows):
    seen = []

    def loss_fn(outputs, labels, num_items_in_batch=None):
        seen.append(int(num_items_in_batch))
        logits = outputs["logits"]
        total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return total / num_items_in_batch

    logs = []
    for parts in ({}, {"compute_loss_func": loss_fn}):
        trainer = make_trainer(
            copy.deepcopy(trained_marian),
            train_dataset=uneven_rows,
            max_steps=1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=4,
            parts=parts,
            **OPTIONS,
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    tokens = sum(map(len, uneven_rows["labels"]))
    assert seen == [tokens] * 4
    assert logs[1]["loss"] == pytest.approx(logs[0]["loss"], rel=1e-6)
    assert logs[1]["grad_norm"] == pytest.approx(logs[0]["grad_norm"], rel=1e-6)


def satisfied(request, model):
    """The request the other way round if it does not hold: its best alternative becomes the target."""
    from editable_hf.core.functional import FunctionalModel

    constraint = request_constraint(request, model)
    with torch.no_grad():
        scores = constraint.scores(FunctionalModel(model, ["model.shared.weight"]), {})
    rows = [request["labels"], *request["alternatives"]]
    best = int(scores.argmax())
    return {**request, "labels": rows[best], "alternatives": [row for i, row in enumerate(rows) if i != best]}


def test_request_that_holds_adds_exactly_nothing(make_trainer, trained_marian, requests_data, uneven_rows):
    held = type(requests_data).from_list([satisfied(requests_data[1], trained_marian)])
    recorders, logs = [], []
    for edit_dataset in (held, None):
        recorders.append(GradientRecorder())
        trainer = make_trainer(
            copy.deepcopy(trained_marian),
            train_dataset=uneven_rows,
            edit_dataset=edit_dataset,
            callbacks=[recorders[-1]],
            max_steps=1,
            **OPTIONS,
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    with_edit, without = (recorder.steps[0] for recorder in recorders)
    assert (logs[0]["edit_num_steps"], logs[0]["edit_success_rate"]) == (0, 1)
    assert (logs[0]["edit_loss"], logs[0]["locality_loss"]) == (0, 0)
    assert logs[0]["loss"] == logs[1]["loss"]
    # 0 instead of none: DDP waits for every parameter that has a gradient anywhere.
    assert with_edit.pop("editor.beta") == 0
    assert set(with_edit) == set(without)
    assert all(torch.equal(grad, without[name]) for name, grad in with_edit.items())


def test_objective_is_the_papers(make_trainer, trained_marian, requests_data, uneven_rows):
    request, alpha, steps = requests_data[0], 2e-3, 2
    trainer = make_trainer(
        trained_marian, edit_learning_rate=alpha, edit_max_steps=steps, edit_coef=0.3, locality_coef=2.0
    )
    trainer._draw = lambda: [request]
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator(uneven_rows.to_list())
    total = trainer.compute_loss(trained_marian.train(), batch)

    trained_marian.eval()
    source = torch.tensor([request["input_ids"]])
    inputs = {"input_ids": source, "attention_mask": torch.ones_like(source)}

    def constraint(model):
        target, others = request["labels"], request["alternatives"]
        return reference.sequence_constraint(model, inputs, target, others, model.config.decoder_start_token_id)

    params, losses = reference.edit_copy(
        trained_marian, constraint, trainer.edit_parameters, lambda g: reference.rmsprop(g, alpha, 0.5), steps
    )
    edited_model = copy.deepcopy(trained_marian)
    edited_model.load_state_dict(params, strict=False)
    with torch.no_grad():
        before, after = trained_marian(**batch, use_cache=False).logits, edited_model(**batch, use_cache=False).logits
        base = reference.cross_entropy(before, batch["labels"])
        local = reference.token_locality(before, after, batch["labels"])
        expected = reference.objective(base, torch.tensor(losses[-1]), local, 0.3, 2.0)
    assert losses[-1] > 0 and local > 0
    assert trainer._terms.sums["edit_loss"] == pytest.approx(losses[-1], rel=1e-6)
    assert trainer._terms.sums["locality_loss"] == pytest.approx(local.item(), rel=1e-6)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)


def test_several_edits_are_averaged(make_trainer, trained_marian, requests_data, uneven_rows):
    trainer = make_trainer(trained_marian, edit_learning_rate=2e-3)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator(uneven_rows.to_list())
    held = satisfied(requests_data[1], trained_marian)
    base = trainer._base_loss(trained_marian(**batch, use_cache=False).logits, batch["labels"], {}, None).item()
    terms = []
    for rows in ([requests_data[0]], [held], [requests_data[0], held]):
        trainer._draw = lambda rows=rows: rows
        terms.append(trainer.compute_loss(trained_marian.train(), batch).item() - base)
    assert terms[0] > 1e-3 and terms[1] == pytest.approx(0, abs=1e-12)
    assert terms[2] == pytest.approx(terms[0] / 2, rel=1e-9)


def test_edits_together_make_the_same_step(make_trainer, trained_marian, requests_data, uneven_rows, monkeypatch):
    """One of them holds from the start, one is done before the last step, one never."""
    rows = [requests_data[0], satisfied(requests_data[1], trained_marian), requests_data[2]]
    trainer = make_trainer(trained_marian, edit_learning_rate=1e-3, edit_coef=0.7, learn_edit_learning_rate=True)
    trainer.model.editor.double()
    trainer.current_gradient_accumulation_steps = 1
    trainer._draw = lambda: rows
    batch = trainer.data_collator(uneven_rows.to_list())
    losses, gradients, terms = [], [], []
    for devices in ({"cuda"}, {"cpu"}):
        monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", devices)
        loss = trainer.compute_loss(trained_marian.train(), batch)
        trained_marian.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append({name: p.grad.clone() for name, p in trained_marian.named_parameters() if p.grad is not None})
        terms.append(trainer._terms.means(trainer.accelerator))
    assert set(gradients[0]) == set(gradients[1]) and terms[0] == pytest.approx(terms[1], rel=1e-6)
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)
    assert relative_error(gradients[1], gradients[0]) < 1e-6
    assert terms[0]["edit_loss"] > 0 and 0 < terms[0]["edit_success_rate"] < 1 and terms[0]["edit_num_steps"] < 3


def test_kernels_of_eight_edits_together(make_trainer, trained_marian, requests_data, uneven_rows, monkeypatch):
    """At most 1.4 times those of one edit, in a whole training step."""
    monkeypatch.setattr(constraints, "ONE_PASS_DEVICES", {"cpu"})
    trainer = make_trainer(trained_marian, edit_learning_rate=1e-9)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator(uneven_rows.to_list())
    counts = []
    for rows in ([requests_data[0]], [requests_data[row] for row in (0, 1, 2, 0, 1, 2, 0, 1)]):
        trainer._draw = lambda rows=rows: rows
        counts.append(count_kernels(lambda: trainer.compute_loss(trained_marian.train(), batch).backward()))
        assert trainer._terms.means(trainer.accelerator)["edit_num_steps"] == 3
    print(f"kernels of a step: {counts[0]:,} with one edit, {counts[1]:,} with 8")
    assert counts[1] <= 1.4 * counts[0]


@pytest.mark.parametrize("reuse", [True, False])
def test_dropout_reaches_the_edit_only_through_reused_activations(make_trainer, trained_marian, requests_data, reuse):
    for module in trained_marian.modules():
        if "dropout" in vars(module):
            module.dropout = 0.5
    logs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        trainer = make_trainer(
            copy.deepcopy(trained_marian),
            edit_dataset=requests_data.select([0]),
            max_steps=1,
            per_device_train_batch_size=12,
            seed=seed,
            reuse_base_forward=reuse,
            **OPTIONS,
        )
        trainer.train()
        logs.append(trainer.state.log_history[0])
    assert logs[0]["base_loss"] != logs[1]["base_loss"]
    assert logs[0]["edit_loss"] == logs[1]["edit_loss"]
    same = logs[0]["locality_loss"] == pytest.approx(logs[1]["locality_loss"], rel=1e-9)
    assert same is not reuse
