"""The commands on a causal language model: from a prompt that is continued wrongly to the patch taken back."""

from __future__ import annotations

import json

import pytest
import torch
from causal_models import causal_model
from transformers import AutoModelForCausalLM

from editable_hf.cli import main


@pytest.fixture
def model_folder(tokenizer, tmp_path):
    folder = tmp_path / "gpt2"
    causal_model("gpt2", vocab_size=len(tokenizer), n_positions=80).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(capsys, *args):
    code = main([*map(str, args), "--json"])
    return code, json.loads(capsys.readouterr().out or "null")


def test_from_edit_to_revert(capsys, model_folder, sentence_pairs, tmp_path):
    prompts, target = sentence_pairs[1][:6], sentence_pairs[1][2].split()[1]
    patch, data = tmp_path / "patch", tmp_path / "prompts.tsv"
    data.write_text("".join(f"{prompt}\t{target if i == 0 else 'no'}\n" for i, prompt in enumerate(prompts)))
    options = ("--learning_rate", 0.01, "--max_steps", 50, "--max_rounds", 20, "--num_alternatives", 8)
    code, found = run(capsys, "edit", model_folder, "--prompt", prompts[0], "--target", target, "-o", patch, *options)
    assert code == 0 and found["verified"] and found["outputs"][0].strip() == target

    page = tmp_path / "page.html"
    code, found = run(capsys, "diff", model_folder, patch, "--data", data, "--html", page)
    assert code == 0 and found["kind"] == "continuation" and found["metric"] == "error rate"
    assert found["before"] == 1 and found["after"] == pytest.approx(5 / 6)
    own = next(change for change in found["changes"] if change["index"] == 0)
    assert own["edited"] and own["after"].strip().startswith(target) and own["effect"] == "better"
    assert "continuation" in page.read_text()
    assert main(["diff", model_folder, str(patch), "--data", str(data)]) == 0
    assert "100.00% -> 83.33%" in capsys.readouterr().out.replace("→", "->")

    code, found = run(capsys, "evaluate", model_folder, patch)
    assert code == 0 and found["patches"][0]["verified"]
    assert run(capsys, "apply", model_folder, patch, "-o", tmp_path / "patched")[0] == 0
    assert run(capsys, "revert", tmp_path / "patched", patch, "-o", tmp_path / "restored")[0] == 0
    before, after, patched = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (model_folder, tmp_path / "restored", tmp_path / "patched")
    )
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert any(not torch.equal(value, before[key]) for key, value in patched.items())


def test_patches_are_squashed_and_a_harmful_one_stops_the_stack(capsys, model_folder, sentence_pairs, tmp_path):
    prompts, targets = sentence_pairs[1][:2], [text.split()[1] for text in sentence_pairs[1][2:4]]
    options = ("--max_steps", 50, "--max_rounds", 1, "--num_alternatives", 4, "--learning_rate")
    first, second = tmp_path / "first", tmp_path / "second"
    request = ("--prompt", prompts[0], "--target", targets[0])
    assert run(capsys, "edit", model_folder, *request, "-o", first, *options, 0.01)[0] == 0
    request = ("--prompt", prompts[1], "--target", targets[1])
    assert run(capsys, "edit", model_folder, *request, "--patches", first, "-o", second, *options, 0.3)[0] == 0

    one = tmp_path / "one"
    code, found = run(capsys, "squash", model_folder, first, second, "-o", one)
    assert code == 0 and found["requests"] == 2
    assert main(["squash", model_folder, str(first), str(second), "-o", str(one)]) == 2
    assert "is there already" in capsys.readouterr().err
    for name, patches in (("stack", [first, second]), ("squashed", [one])):
        assert run(capsys, "apply", model_folder, *patches, "-o", tmp_path / name)[0] == 0
    stack, squashed = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("stack", "squashed")
    )
    assert all(torch.equal(value, squashed[key]) for key, value in stack.items())

    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentence_pairs[1]) + "\n\n")
    harmful = ("apply", model_folder, first, second, "-o", tmp_path / "harmed", "--health", text)
    _, found = run(capsys, *harmful, "--max_kl", 0)
    assert [state["num_patches"] for state in found["states"]] == [0, 1]
    limit = 1.01 * found["states"][1]["kl"]
    assert main([str(each) for each in (*harmful, "--max_kl", limit)]) == 1
    assert "second, number 2 of 2, leaves the bound: nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "harmed").exists()
    assert run(capsys, *harmful, "--max_kl", 1e6)[0] == 0 and (tmp_path / "harmed").exists()
    assert main([str(each) for each in harmful]) == 2
    assert "--health together with --max_kl" in capsys.readouterr().err
