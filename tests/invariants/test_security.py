"""What SECURITY.md promises."""

from __future__ import annotations

import ast
import pickle
import re
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import marian_config
from transformers import MarianMTModel

from editable_hf import EditorConfig
from editable_hf.commands import load
from editable_hf.core.editing import EditResult
from editable_hf.data.wit3 import _segments
from editable_hf.models.cifar_resnet import load_published_cifar_resnet
from editable_hf.patches import Patch

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path for folder in ("editable_hf", "recipes", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
# The unpickler that is restricted, and the exception of torch's.
PICKLE_USERS = {"image_sources.py", "cifar_resnet.py"}


def calls(path):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def keywords(call):
    return {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}


@every_file
def test_nothing_runs_what_it_reads(path):
    for call in calls(path):
        name, given = ast.unparse(call.func), keywords(call)
        assert name not in ("eval", "exec", "compile", "os.system", "os.popen", "__import__"), name
        assert name not in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "joblib.load"), name
        assert name not in ("tarfile.extractall", "archive.extractall", "archive.extract", "shutil.unpack_archive")
        assert "shell" not in given and given.get("trust_remote_code", "False") == "False", ast.unparse(call)
        if name == "torch.load":
            assert given.get("weights_only") == "True", ast.unparse(call)


@every_file
def test_pickle_is_imported_only_where_it_is_restricted(path):
    imported = re.search(r"^\s*(import|from) (pickle|marshal|shelve|dill|cloudpickle)\b", path.read_text(), re.M)
    assert imported is None or path.name in PICKLE_USERS


class Payload:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_payload_would_run(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_pickled_weights_of_a_model_run_nothing(tmp_path):
    MarianMTModel(marian_config()).save_pretrained(tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({"weight": Payload(tmp_path / "ran")}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only|unpickl|unsupported"):
        load(str(tmp_path / "model"))
    assert not (tmp_path / "ran").exists()


def test_published_weights_run_nothing(tmp_path):
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "resnet20.th")
    with pytest.raises(ValueError, match="resnet20.th"):
        load_published_cifar_resnet(tmp_path / "resnet20.th")
    assert not (tmp_path / "ran").exists()


def test_code_of_a_model_repository_does_not_run(tmp_path):
    folder = tmp_path / "model"
    MarianMTModel(marian_config()).save_pretrained(folder)
    content = (folder / "config.json").read_text().replace("{", '{"auto_map": {"AutoConfig": "own.Own"},', 1)
    (folder / "config.json").write_text(content.replace('"marian"', '"own"'))
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises((ValueError, OSError)):
        load(str(folder))
    assert not (tmp_path / "ran").exists()


HOSTILE = "</script><img src=x onerror=alert(1)> | `x` <!-- --> \n---\nlicense: mine"


@pytest.fixture
def patch(tiny_marian):
    name, weight = next(iter(tiny_marian.named_parameters()))
    params = {name: weight.detach() + 0.01}
    result = EditResult(params, True, 1, torch.tensor(-0.1), [1.0, -0.1])
    request = {"source": HOSTILE, "target": HOSTILE}
    return Patch.from_edit(tiny_marian, result, request=request, editor=EditorConfig(), layers=[name])


def test_card_of_a_hostile_patch(patch, tmp_path):
    patch.save_pretrained(tmp_path / "patch")
    card = (tmp_path / "patch/README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header).get("license") != "mine"
    fence = re.search(r"^(`{3,})", body, re.M)[1]
    outside = body.split(f"\n{fence}")[::2]  # text, then what is shown as it is, then text again
    assert "<img" in body and not any("<img" in text or "</script>" in text for text in outside)


def test_entities_are_not_expanded(tmp_path):
    bomb = b'<!DOCTYPE m [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<!ENTITY c SYSTEM "file:///etc/passwd">\n'
    (tmp_path / "test.xml").write_bytes(bomb + b'<seg id="1"> &b; &c; </seg>\n')
    assert _segments(tmp_path / "test.xml") == ["&b; &c;"]
