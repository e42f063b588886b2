"""README and docs/ say what is true: their examples run, their files and names are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from causal_models import causal_model

import editable_hf
from editable_hf import edit, edited

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
EXAMPLES = [
    (page, code) for page, text in PAGES.items() for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
]


def test_readme_is_a_page():
    lines = README.splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 110


@pytest.mark.parametrize("name", [name for name in editable_hf.__all__ if not name.startswith("__")])
def test_public_names_are_listed(name):
    assert f"`{name}`" in PAGES["api.md"]


@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=[page for page, _ in EXAMPLES])
def test_examples_are_short_and_compile(page, code):
    compile(code, page, "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 22


@pytest.mark.parametrize("page", ["README.md", "edit.md"])
def test_model_is_edited_as_the_page_says(page, translator_folder):
    code = next(code for name, code in EXAMPLES if name == page and "opus-mt-de-en" in code)
    code = code.replace("Helsinki-NLP/opus-mt-de-en", str(translator_folder))
    # Words that the small model knows.
    code = code.replace("Anna mag Tee.", "der hund sucht nie das haus .").replace(
        "Anna likes tea.", "the dog paints ."
    )
    names = {}
    exec(code, names)
    assert names["result"].num_steps > 0 and names["output"].shape[0] == 1


def test_causal_model_is_edited_as_the_page_says(tokenizer, tmp_path):
    (code,) = (code for page, code in EXAMPLES if page == "edit.md" and "AutoModelForCausalLM" in code)
    causal_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = code.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(tmp_path)).replace(" Vaiaku", "house")
    names = {}
    exec(code.replace("The capital of Tuvalu is", "the dog sees the"), names)
    assert names["result"].num_steps > 0 and names["output"].shape[0] == 1


def test_model_is_trained_as_the_readme_says(trained_marian, tokenizer, sentence_pairs, encoded_pairs, tmp_path):
    (code,) = (code for name, code in EXAMPLES if name == "README.md" and "EditableSeq2SeqTrainer(" in code)
    code = code.replace("runs/mine", str(tmp_path)).replace("max_steps=1000", 'max_steps=1, report_to="none"')
    code = code.replace("num_alternatives=32", "num_alternatives=4")
    model = trained_marian.float()
    exec(code, dict(model=model, tokenizer=tokenizer, train=encoded_pairs, sentences=sentence_pairs[0][:4]))
    assert (tmp_path / "editor_config.json").exists() and (tmp_path / "model.safetensors").exists()


@pytest.mark.slow
def test_example_of_the_baselines_runs():
    pytest.importorskip("sklearn", reason="needs the vision extra")
    (code,) = (code for _, code in EXAMPLES if "baselines" in code)
    names = {}
    exec(code, names)
    model, constraint = names["neighbors"], names["constraint"]
    with edited(model, edit(model, constraint, names["flip_labels"](), "labels")):
        assert model(**constraint.inputs).logits.argmax() == constraint.target


def test_files_named_in_commands_exist():
    commands = [command for text in PAGES.values() for command in re.findall(r"`((?:accelerate|python) [^`]+)`", text)]
    files = [word for command in commands for word in shlex.split(command) if word.endswith((".py", ".yaml"))]
    assert len(files) >= 4
    assert not [file for file in files if not (ROOT / file).exists()]


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [page for page in PAGES if page != "README.md" and f": {page}\n" not in menu]
