"""What people put around a model: half precision, `torch.compile`, LoRA, quantization, several devices."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, MarianMTModel

from editable_hf import (
    EditableSeq2SeqTrainer,
    EditableSeq2SeqTrainingArguments,
    EditorConfig,
    edit,
    edited,
    request_constraint,
    rmsprop,
)
from editable_hf.patches import Patch, apply_patches, revert_patches

ROW = {"input_ids": [5, 6, 7, 2], "labels": [9, 10, 2], "alternatives": [[7, 2], [8, 9, 2], [9, 11, 2]]}
EDITOR = EditorConfig("rmsprop", {"learning_rate": 0.03}, ["last_decoder_layer"], 10)


def edit_and_patch(model, folder, layers="last_decoder_layer"):
    """The names that a patch of the model has, after it was applied and taken back bit for bit."""
    model.eval()
    constraint, before = request_constraint(ROW, model), {n: p.detach().clone() for n, p in model.named_parameters()}
    result = edit(model, constraint, rmsprop(3e-2), layers, max_steps=60)
    assert result.success and result.num_steps > 0
    with edited(model, result):
        model.generate(input_ids=torch.tensor([ROW["input_ids"]]), num_beams=1, max_new_tokens=3)
    patch = Patch.from_edit(model, result, request=ROW, editor=EDITOR, layers=layers)
    patch.save_pretrained(folder)
    assert apply_patches(model, folder) is model
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    revert_patches(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    return list(patch.tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_edited_and_patched(tiny_marian, dtype, tmp_path):
    assert edit_and_patch(tiny_marian.to(dtype), tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_margin_in_half_precision_is_summed_in_float32(tiny_marian, dtype):
    model = tiny_marian.to(dtype).eval()
    targets = [[9, 10, 11] * 8 + [2], [12, 13, 14] * 8 + [2]]
    row = {**ROW, "labels": targets[0], "alternatives": targets[1:]}
    with torch.no_grad():
        scores = []
        for ids in targets:
            inputs = {
                "input_ids": torch.tensor([ROW["input_ids"]]),
                "decoder_input_ids": torch.tensor([[1, *ids[:-1]]]),
            }
            log_probs = model(**inputs).logits[0].double().log_softmax(-1)
            scores.append(log_probs[range(len(ids)), ids].sum())
    margin = edit(model, request_constraint(row, model), rmsprop(3e-2), "last_decoder_layer", max_steps=0).loss
    assert margin.dtype == torch.float32 and margin.item() == pytest.approx((scores[1] - scores[0]).item(), abs=0.02)


def compiled_in_place(model, **options):
    model.compile(**options)
    return model


def compiled_forward(model, **options):
    model.forward = torch.compile(model.forward, **options)
    return model


@pytest.mark.parametrize("form", [torch.compile, compiled_in_place, compiled_forward])
def test_compiled_model_is_edited_by_its_own_code(tiny_marian, form):
    model, constraint = tiny_marian.eval(), request_constraint(ROW, tiny_marian)
    expected = edit(model, constraint, rmsprop(3e-2), "last_decoder_layer", create_graph=True)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    result = edit(form(model, backend=backend), constraint, rmsprop(3e-2), "last_decoder_layer", create_graph=True)
    assert result.num_steps == expected.num_steps > 0 and not compiled
    assert set(result.params) <= set(dict(tiny_marian.named_parameters()))
    assert all(torch.equal(result.params[name], value) for name, value in expected.params.items())


def test_compiled_model_is_patched_under_the_names_of_the_model_within(tiny_marian, tmp_path):
    names = edit_and_patch(torch.compile(tiny_marian, backend="eager"), tmp_path)
    assert names and set(names) <= set(dict(tiny_marian.named_parameters()))


@pytest.mark.parametrize("layers", ["last_decoder_mlp", "*lora_B*"])
def test_lora_is_edited_with_its_base(tiny_marian, layers, tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, task_type="SEQ_2_SEQ_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(tiny_marian, config).eval()
    assert edit(model, request_constraint(ROW, model), rmsprop(3e-2), layers, max_steps=60).success
    with pytest.raises(TypeError, match=r"for peft `model.get_base_model\(\)`"):
        apply_patches(model, [])
    names = edit_and_patch(model.get_base_model(), tmp_path, layers)
    assert names and all(("lora_B" in name) == ("lora_B" in layers) for name in names)


def test_quantized_parameters_are_refused_and_others_named(tiny_marian):
    layer = tiny_marian.model.decoder.layers[1].fc1
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    message = r"1 of the 26 selected parameters are quantized .* such as model\.decoder\.layers\.1\.fc1\.weight"
    with pytest.raises(ValueError, match=message):
        edit(tiny_marian, request_constraint(ROW, tiny_marian), rmsprop(3e-2), "last_decoder_layer")


@pytest.mark.parametrize("bits", [4, 8])
def test_model_that_bitsandbytes_quantized(tiny_marian, bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_marian.save_pretrained(tmp_path / "model")
    how = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    model = MarianMTModel.from_pretrained(tmp_path / "model", quantization_config=how)
    with pytest.raises(ValueError, match=r"10 of the 26 selected .* are quantized .* example: .*layer_norm\.bias"):
        edit(model, request_constraint(ROW, model), rmsprop(3e-2), "last_decoder_layer")
    names = edit_and_patch(model, tmp_path / "patch", "*decoder.layers.1.*layer_norm*")
    assert names and all("layer_norm" in name for name in names)
    with pytest.raises(ValueError, match="purely quantized models"):  # transformers' own words
        EditableSeq2SeqTrainer(model, EditableSeq2SeqTrainingArguments("unused", report_to=[], use_cpu=True))


def test_model_on_several_devices_is_refused(tiny_marian):
    tiny_marian.hf_device_map = {"model.encoder": "disk", "model.decoder": "cpu"}
    with pytest.raises(ValueError, match=r"several devices \(cpu, disk\) by `device_map`"):
        edit(tiny_marian, request_constraint(ROW, tiny_marian), rmsprop(3e-2), "last_decoder_layer")
    with pytest.raises(ValueError, match="several devices"):
        EditableSeq2SeqTrainer(tiny_marian, EditableSeq2SeqTrainingArguments("unused", report_to=[], use_cpu=True))
