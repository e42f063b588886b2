"""A model is trained and pushed; elsewhere it is pulled, edited, and the patch pushed; a third place applies it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from patches.hub_server import running_hub
from safetensors.torch import load_file

pytestmark = pytest.mark.slow  # every step is a process that imports torch and transformers

CLIENT = str(Path(__file__).with_name("trainer_client.py"))


def run(hub, home, *command):
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *command], env=hub.environment(home), capture_output=True, text=True, cwd=home, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def command(hub, home, *args):
    return run(hub, home, "-m", "editable_hf.cli", *args, "--json")


def test_train_push_edit_push_pull_apply_revert(translator_folder, sentence_pairs, tmp_path):
    sources, targets = sentence_pairs
    pairs = zip(sources[:16], targets[:16], strict=True)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs))
    with running_hub() as hub:
        run(hub, tmp_path / "trainer", CLIENT, str(translator_folder), str(tmp_path))
        files = hub.files("me/translator")
        assert {"model.safetensors", "config.json", "editor_config.json", "README.md"} <= set(files)
        card = ModelCard(files["README.md"].decode())
        assert "editable" in card.data.tags and "## Editing this model" in card.text

        editor = tmp_path / "editor"
        wanted = ["--source", sources[0], "--target", targets[1], "--learning_rate", "3e-3", "--max_steps", "60"]
        found = command(hub, editor, "edit", "me/translator", *wanted, "-o", "patch")
        assert found["success"] and found["verified"]
        assert "commit" in command(hub, editor, "push", "patch", "me/fix")["url"]

        user = tmp_path / "user"
        (one,) = command(hub, user, "list", "me/fix")["found"]
        assert one["base_model"] == "me/translator" and one["verified"]
        (state,) = command(hub, user, "evaluate", "me/translator", "me/fix")["patches"]
        assert state["success"] and state["verified"]
        command(hub, user, "apply", "me/translator", "me/fix", "-o", "patched")
        command(hub, user, "revert", "patched", "me/fix", "-o", "restored")
        restored, original = load_file(user / "restored/model.safetensors"), tmp_path / "original.safetensors"
        original.write_bytes(files["model.safetensors"])
        assert all(value.equal(restored[name]) for name, value in load_file(original).items())
