"""`editable-hf export`: a patch goes into the systems that serve models."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

from editable_hf import EditorConfig
from editable_hf.cli import main


@pytest.fixture
def files(translator_folder, sentence_pairs, tmp_path, capsys):
    """A model, a patch, sentences."""
    EditorConfig(hyperparameters={"learning_rate": 3e-3, "beta": 0.5}, max_steps=60).save_pretrained(translator_folder)
    model, patch, data = str(translator_folder), str(tmp_path / "patch"), tmp_path / "data.txt"
    sources, targets = sentence_pairs
    assert main(["edit", model, "--source", sources[0], "--target", targets[1], "-o", patch]) == 0
    data.write_text("".join(f"{text}\n" for text in sources[:30]))
    capsys.readouterr()
    return model, patch, str(data)


def test_ctranslate2(files, capsys, tmp_path):
    model, patch, data = files
    patched = str(tmp_path / "patched")
    assert main(["apply", model, patch, "-o", patched]) == 0
    assert main(["export", patched, "--to", "ctranslate2", "-o", str(tmp_path / "a"), "--data", data]) == 0
    printed = capsys.readouterr().out
    for beams in (1, 3):
        assert f"beams: {beams}, the same translations as the model: 30 of 30" in printed
    assert main(["export", model, "--patches", patch, "--to", "ctranslate2", "-o", str(tmp_path / "b")]) == 0
    assert "were not compared" in capsys.readouterr().out
    assert (tmp_path / "a/model.bin").read_bytes() == (tmp_path / "b/model.bin").read_bytes()
    assert main(["export", model, "--to", "ctranslate2", "-o", str(tmp_path / "c")]) == 0
    assert (tmp_path / "a/model.bin").read_bytes() != (tmp_path / "c/model.bin").read_bytes()


def test_rounded_weights_differ_and_that_is_printed(files, capsys, tmp_path):
    model, patch, data = files
    args = ["export", model, "--patches", patch, "--to", "ctranslate2", "--data", data, "--quantization", "int8"]
    assert main([*args, "-o", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_compared"] == 30 and found["quantization"] == "int8"
    assert found["num_beams"] == 3 and found["differences"] and found["num_greedy_differences"]
    for each in found["differences"]:
        assert each["model"] != each["ctranslate2"]
    assert main([*args, "-o", str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert f"beams: 1, the same translations as the model: {30 - found['num_greedy_differences']} of 30" in printed
    assert f"beams: 3, the same translations as the model: {30 - len(found['differences'])} of 30" in printed
    assert printed.count("ctranslate2 ") == min(5, len(found["differences"]))


def test_lora(files, capsys, tmp_path, tokenizer):
    model, patch, _ = files
    output, patched = str(tmp_path / "adapter"), str(tmp_path / "patched")
    assert main(["export", model, "--patches", patch, "--to", "lora", "-o", output]) == 0
    assert "10 matrices as factors of rank 32 to 32, relative error " in capsys.readouterr().out
    assert main(["apply", model, patch, "-o", patched]) == 0
    inputs = tokenizer(["der hund sieht das haus ."], text_target=["the dog sees the house ."], return_tensors="pt")
    base, whole = map(AutoModelForSeq2SeqLM.from_pretrained, (model, patched))
    with torch.no_grad():
        expected = whole.eval()(**inputs).logits
        found = PeftModel.from_pretrained(base, output).eval()(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert main(["export", model, "--patches", patch, "--to", "lora", "-o", str(tmp_path / "b"), "--rank", "1"]) == 0


def test_wrong_exports(files, capsys, tmp_path):
    model, patch, _ = files
    for options, message in (
        (["--to", "ctranslate2", "-o", patch], "is there already"),
        (["--to", "ctranslate2", "--data", "missing.txt"], "missing.txt"),
    ):
        assert main(["export", model, "-o", str(tmp_path / "new"), *options]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
