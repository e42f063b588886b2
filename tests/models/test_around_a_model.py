"""What people put around a model: half precision, `torch.compile`, LoRA, quantization, several devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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


def test_compiled_model_is_edited_under_the_names_of_the_model_within(tiny_marian, tmp_path):
    names = edit_and_patch(torch.compile(tiny_marian, backend="eager"), tmp_path)
    assert names and set(names) <= set(dict(tiny_marian.named_parameters()))


@pytest.mark.parametrize("layers", ["last_decoder_mlp", "*lora_B*"])
def test_lora_is_edited_with_its_base(tiny_marian, layers, tmp_path):
    peft = pytest.importorskip("peft")
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


def test_model_on_several_devices_is_refused(tiny_marian):
    tiny_marian.hf_device_map = {"model.encoder": "disk", "model.decoder": "cpu"}
    with pytest.raises(ValueError, match=r"several devices \(cpu, disk\) by `device_map`"):
        edit(tiny_marian, request_constraint(ROW, tiny_marian), rmsprop(3e-2), "last_decoder_layer")
    with pytest.raises(ValueError, match="several devices"):
        EditableSeq2SeqTrainer(tiny_marian, EditableSeq2SeqTrainingArguments("unused", report_to=[], use_cpu=True))
