"""An adapter gives, in plain peft, what the patched model gives; what it cannot carry is refused by name."""

import copy

import pytest
import torch
from causal_models import causal_model
from image_models import CONFIGS, NUM_CLASSES, SIZE
from peft import PeftModel
from transformers import ViTConfig, ViTForImageClassification

from editable_hf.core.editing import edited
from editable_hf.core.selection import select_parameters
from editable_hf.export import save_lora


def moved(model, layers):
    """An edit of all parameters of some layers, each by a matrix of full rank."""
    generator = torch.Generator().manual_seed(0)
    chosen = select_parameters(model, layers)
    return {
        name: (value + 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)).detach()
        for name, value in chosen.items()
    }


@pytest.fixture
def model(trained_marian):
    return trained_marian.float()


@pytest.fixture
def inputs(tokenizer, sentence_pairs):
    sources, targets = sentence_pairs
    batch = tokenizer(sources[:4], text_target=targets[:4], return_tensors="pt", padding=True)
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


@torch.no_grad()
def logits_of(model, inputs):
    return model.eval()(**inputs).logits


def test_adapter_is_the_edit(model, inputs, tmp_path):
    params, weights = moved(model, "last_decoder_layer"), copy.deepcopy(model.state_dict())
    before = logits_of(model, inputs)
    with edited(model, params):
        after = logits_of(model, inputs)
    found = save_lora(model, params, tmp_path / "adapter", base_model="me/translator")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert found.ranks["model.decoder.layers.1.fc1"] == 32 and found.relative_error < 1e-6
    assert {name.rpartition(".")[2] for name in found.whole} == {
        *("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    }
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(logits_of(loaded, inputs), after, rtol=1e-5, atol=1e-5)
    assert loaded.generate(**inputs, max_new_tokens=5).shape[0] == 4
    assert loaded.peft_config["default"].base_model_name_or_path == "me/translator"
    with loaded.disable_adapter():  # the server switches it off for the next request
        torch.testing.assert_close(logits_of(loaded, inputs), before, rtol=0, atol=0)


def test_rank_is_the_best_approximation_and_its_error_is_said(model, inputs, tmp_path):
    params = moved(model, ["model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2"])
    found = save_lora(model, params, tmp_path / "adapter", rank=3)
    missed = added = 0.0
    for name in ("fc1", "fc2"):
        key = f"model.decoder.layers.1.{name}"
        values = torch.linalg.svdvals((params[f"{key}.weight"] - model.get_parameter(f"{key}.weight")).detach())
        missed, added = missed + values[3:].square().sum(), added + values.square().sum()
        assert found.ranks[key] == 3
    assert found.relative_error == pytest.approx(float((missed / added).sqrt()), rel=1e-4)
    loaded = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    own = dict(loaded.named_parameters())
    gone = sum((own[name] - value).square().sum() for name, value in params.items())
    assert float((gone / added).sqrt()) == pytest.approx(found.relative_error, rel=1e-3)
    for name, value in params.items():
        if name.endswith("bias"):
            torch.testing.assert_close(own[name], value)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_causal_models(kind, tmp_path):
    model = causal_model(kind).float().eval()
    params = moved(model, "last_decoder_mlp")
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    with edited(model, params):
        after = logits_of(model, inputs)
    save_lora(model, params, tmp_path)
    assert (logits_of(model, inputs) - after).abs().max() > 1e-3
    torch.testing.assert_close(
        logits_of(PeftModel.from_pretrained(model, tmp_path), inputs), after, rtol=1e-5, atol=1e-5
    )


def test_image_classifier(tmp_path):
    """Ranks differ here: there are fewer classes than features."""
    config = ViTConfig(**CONFIGS["ViT"], num_labels=NUM_CLASSES)
    model = ViTForImageClassification(config).eval()
    params = moved(model, ["last_block", "head"])
    inputs = {"pixel_values": torch.rand(2, 3, SIZE, SIZE)}
    with edited(model, params):
        after = logits_of(model, inputs)
    assert set(save_lora(model, params, tmp_path).ranks.values()) == {NUM_CLASSES, 8}
    loaded = PeftModel.from_pretrained(model, tmp_path)
    torch.testing.assert_close(logits_of(loaded, inputs), after, rtol=1e-5, atol=1e-5)


def test_what_an_adapter_cannot_carry_is_named(model, tmp_path):
    with pytest.raises(ValueError, match="cannot carry model.shared.weight: tied"):
        save_lora(model, moved(model, "all"), tmp_path / "adapter")
    with pytest.raises(ValueError, match="rank of at least 1, got 0"):
        save_lora(model, moved(model, "last_decoder_layer"), tmp_path / "adapter", rank=0)
    assert not (tmp_path / "adapter").exists()


def test_missing_peft_names_the_extra(model, monkeypatch, tmp_path):
    monkeypatch.setattr("editable_hf.versions.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'peft, which is not installed: pip install "editable_hf\[export\]"'):
        save_lora(model, {}, tmp_path / "adapter")
