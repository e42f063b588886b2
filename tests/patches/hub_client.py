"""Runs in a process of its own, with the hub's address in its environment: `hub_client.py WHAT FOLDER`.

Prints a JSON object with what each attempt gave, or the error it raised.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from pathlib import Path

import torch
from transformers import MarianMTModel

from editable_hf.patches import Patch, applied_patches, apply_patches, revert_patches
from editable_hf.patches.encoding import digest, fingerprint

torch.set_num_threads(1)


def attempt(action, *args, **options):
    try:
        return action(*args, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def control(path):
    urllib.request.urlopen(urllib.request.Request(os.environ["HF_ENDPOINT"] + path, data=b""), timeout=10).read()


def state(model):
    return fingerprint({name: digest(tensor) for name, tensor in model.state_dict().items()})


def push(folder):
    patch = Patch.from_pretrained(folder / "patch")
    return {"url": attempt(patch.push_to_hub, "fix")}


def push_badly(folder):
    patch = Patch.from_pretrained(folder / "patch")
    push = patch.push_to_hub
    results = {
        "again": attempt(push, "me/fix", commit_message="once more"),
        "private": attempt(push, "me/secret", private=True),
        "wrong token": attempt(push, "me/other", token="wrong"),
        "read token": attempt(push, "me/other", token="reads-only"),
        "read token, repository exists": attempt(push, "me/fix", token="reads-only"),
        "taken by a model": attempt(push, "me/model"),
        "no id": attempt(push, "../fix"),
    }
    control("/uploads/refuse")
    other = Patch.from_pretrained(folder / "second")
    results["storage refuses"] = attempt(other.push_to_hub, "me/fix")
    return results


def pull(folder):
    model = MarianMTModel.from_pretrained(folder / "model")
    results = {"base": state(model), "carried": applied_patches(apply_patches(model, "me/fix"))}
    results["patched"] = state(model)
    results["reverted"] = state(revert_patches(model))
    read = Patch.from_pretrained
    results |= {
        # In this order: the hub's library reads what it has in its cache when a token is refused.
        "private, wrong token": attempt(read, "me/secret", token="wrong"),
        "private": attempt(lambda: read("me/secret").fingerprint),
        "no repository": attempt(read, "me/nothing"),
        "no revision": attempt(read, "me/fix", revision="v9"),
        "no patch": attempt(read, "me/model"),
        "no id": attempt(read, "./fixes/none"),
    }
    control("/stop")
    results["offline, known"] = attempt(lambda: read("me/fix").fingerprint)
    results["offline, unknown"] = attempt(read, "me/unknown")
    results["offline, push"] = attempt(read("me/fix").push_to_hub, "me/fix")
    return results


if __name__ == "__main__":
    what, folder = sys.argv[1:]
    actions = {"push": push, "push_badly": push_badly, "pull": pull}
    print(json.dumps(actions[what](Path(folder))))
