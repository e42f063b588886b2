import contextlib
import copy
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patches.hub_server import running_hub

from editable_hf.patches import Patch, apply_patches
from editable_hf.patches.encoding import digest, fingerprint

# Each starts processes that import torch and transformers.
pytestmark = pytest.mark.slow

CLIENT = Path(__file__).with_name("hub_client.py")


def start_client(hub, what, folder, home):
    return subprocess.Popen(
        [sys.executable, str(CLIENT), what, str(folder)],
        env=hub.environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=home,
    )


def client(hub, what, folder, home):
    """What a client in a fresh process with an empty cache found."""
    home.mkdir()
    process = start_client(hub, what, folder, home)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


def state(model):
    return fingerprint({name: digest(tensor) for name, tensor in model.state_dict().items()})


def assert_starts(found, expected):
    for name, start in expected.items():
        assert found[name].startswith(start), (name, found[name])


def local_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tiny_marian, make_patch, tmp_path):
    """A model and two patches of it, as a user has them on disk."""
    folder = tmp_path / "mine"
    tiny_marian.save_pretrained(folder / "model")
    make_patch(tiny_marian, base_model="me/model").save_pretrained(folder / "patch")
    make_patch(tiny_marian, seed=1).save_pretrained(folder / "second")
    return folder


def test_push_and_pull(folder, tiny_marian, tmp_path):
    before = local_files(folder)
    with running_hub() as hub:
        url = client(hub, "push", folder, tmp_path / "home1")["url"]
        assert url == f"{hub.url}/me/fix/commit/{hub.repos['me/fix']['commits'][-1][0]}"
        files = hub.files("me/fix")
        assert set(files) == {".gitattributes", "README.md", "patch.json", "patch.safetensors"}
        assert 'apply_patches(model, ["me/fix"])' in files["README.md"].decode()
        assert files["patch.safetensors"] == (folder / "patch/patch.safetensors").read_bytes()
        hub.commit("me/secret", dict(files), private=True)
        hub.commit("me/model", {"config.json": b"{}"})

        found = client(hub, "pull", folder, tmp_path / "home2")
    patch = Patch.from_pretrained(folder / "patch")
    assert found["carried"] == [patch.fingerprint]
    assert found["base"] == found["reverted"] == state(tiny_marian)
    assert found["patched"] == state(apply_patches(copy.deepcopy(tiny_marian), patch))
    assert found["private"] == patch.fingerprint == found["offline, known"]
    expected = {
        "private, wrong token": "PermissionError: Could not pull me/secret: the hub answered 401. Expected a token",
        "no repository": "FileNotFoundError: Could not pull me/nothing: there is no such folder, and no such repo",
        "no revision": "FileNotFoundError: me/fix has no revision 'v9'",
        "no patch": "ValueError: Expected patch.json and patch.safetensors in me/model",
        "no id": "ValueError: Expected an existing folder or a hub id",
        "offline, unknown": "ConnectionError: Could not pull me/unknown: http",
        "offline, push": "ConnectionError: Could not push me/fix: http",
    }
    assert_starts(found, expected)
    assert local_files(folder) == before


def test_pushes_that_must_fail_say_why(folder, tmp_path):
    before = local_files(folder)
    with running_hub() as hub:
        hub.commit("me/model", {"config.json": b"{}", "README.md": b"card of the model"})
        hub.commit("me/fix", {path.name: path.read_bytes() for path in (folder / "patch").iterdir()})
        found = client(hub, "push_badly", folder, tmp_path / "home")
        assert [commit[2] for commit in hub.repos["me/fix"]["commits"]] == ["initial commit", "once more"]
        assert hub.repos["me/secret"]["private"] and "patch.json" in hub.files("me/secret")
        assert hub.files("me/model")["README.md"] == b"card of the model"
        assert set(hub.repos) == {"me/fix", "me/secret", "me/model"}
        assert hub.files("me/fix")["patch.safetensors"] == (folder / "patch/patch.safetensors").read_bytes()
    assert found["again"].startswith(f"{hub.url}/me/fix/commit/")
    expected = {
        "wrong token": "PermissionError: Could not push me/other: the hub answered 401.",
        "read token": "PermissionError: Could not push me/other: the hub answered 403. Expected a token that may",
        "read token, repository exists": "PermissionError: Could not push me/fix: the hub answered 403",
        "taken by a model": "ValueError: Expected a new repository or one with a patch, but me/model holds README.md",
        "no id": "ValueError: Expected",
        "storage refuses": "OSError: Could not push me/fix",
    }
    assert_starts(found, expected)
    assert "storage is full" in found["storage refuses"] and "Nothing was committed" in found["storage refuses"]
    assert local_files(folder) == before


def test_an_upload_that_is_killed_leaves_no_half_patch(folder, tmp_path):
    before = local_files(folder)
    with running_hub() as hub:
        hub.uploads = "stall"
        (tmp_path / "home1").mkdir()
        process = start_client(hub, "push", folder, tmp_path / "home1")
        try:
            assert hub.upload_began.wait(timeout=300)
        finally:
            process.send_signal(signal.SIGKILL)
            with contextlib.suppress(BrokenPipeError):
                process.communicate()
        assert set(hub.files("me/fix")) == {".gitattributes"}
        assert local_files(folder) == before
        hub.uploads = "take"
        assert client(hub, "push", folder, tmp_path / "home2")["url"].startswith(hub.url)
        assert "patch.json" in hub.files("me/fix")
