"""The commands on a causal language model: from a prompt that is continued wrongly to the patch taken back."""

from __future__ import annotations

import json

import pytest
import torch
from causal_models import causal_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from editable_hf.cli import main
from editable_hf.data.continuations import chat_prompt
from editable_hf.data.tokenizer import train_causal_tokenizer


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


TEMPLATE = "{% for message in messages %}<s> {{ message['role'] }} : {{ message['content'] }} {% endfor %}assistant :"


def test_chat_model_is_asked_in_its_template_and_the_patch_remembers(capsys, model_folder, sentence_pairs, tmp_path):
    prompt, target = sentence_pairs[1][0], sentence_pairs[1][2].split()[1]
    arguments = ("edit", model_folder, "--prompt", prompt, "--target", target, "--chat", "-o", tmp_path / "patch")
    assert main([str(each) for each in arguments]) == 2
    assert "has no chat template" in capsys.readouterr().err
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model_folder)
    options = ("--learning_rate", 0.01, "--max_steps", 50, "--max_rounds", 20, "--num_alternatives", 4)
    code, found = run(capsys, *arguments, *options)
    assert code == 0 and found["verified"]
    saved = json.loads((tmp_path / "patch/patch.json").read_text())
    asked = f"<s> user : {prompt} assistant :"
    assert saved["inputs"]["chat"] == "user" and saved["request"][0]["source"] == asked
    assert saved["request"][0]["input_ids"] == tokenizer(asked)["input_ids"]
    data = tmp_path / "prompts.tsv"
    data.write_text(f"{prompt}\t{target}\n{sentence_pairs[1][1]}\tno\n")
    code, found = run(capsys, "diff", model_folder, tmp_path / "patch", "--data", data)  # without saying it again
    assert code == 0 and found["after"] == 0.5 and found["changes"][0]["edited"]


def test_chat_prompt_begins_once():
    """A tokenizer that adds the first token to any text, and a template that writes it, too."""
    twice = train_causal_tokenizer(["user : hi assistant :"], 280)
    twice.chat_template = TEMPLATE
    assert chat_prompt(twice, "hi") == "<s> user : hi assistant :"
    both = [("<s>", twice.bos_token_id)]
    twice.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=both)
    prompt = chat_prompt(twice, [{"role": "user", "content": "hi"}])
    assert twice(prompt)["input_ids"].count(twice.bos_token_id) == 1
