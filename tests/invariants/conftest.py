from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from editable_hf import EditorConfig, edit, rmsprop, select_parameters
from editable_hf.patches import Patch

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def valid(tmp_path_factory, translator_template, tokenizer):
    """Valid input of each kind, which the cases damage: each gets its own copy."""
    folder = tmp_path_factory.mktemp("valid")
    corpus = folder / "corpus"
    corpus.mkdir()
    for split in ("train", "valid", "test"):
        for language in ("de", "en"):
            (corpus / f"{split}.{language}").write_text("ein hund .\nzwei hunde .\ndrei .\n")
    model = translator_template.float()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    EditorConfig().save_pretrained(folder / "model")
    params = {name: p.detach() + 0.01 for name, p in select_parameters(model, "last_decoder_layer").items()}
    result = edit(model, lambda *_: torch.tensor(-1.0), rmsprop(1e-3), "last_decoder_layer")._replace(params=params)
    fix = {"source": "ein", "target": "a"}
    Patch.from_edit(model, result, request=fix, editor=EditorConfig(), layers="*").save_pretrained(folder / "patch")
    (folder / "requests.jsonl").write_text('{"source": "ein hund .", "target": "a dog ."}\n')
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / "images" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "images" / split / name / "1.png")
    shutil.copytree(RECIPES / "configs", folder / "configs")
    return folder
