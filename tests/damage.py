"""Valid input of each kind, ways to damage it, and the check that damaged input is refused with a reason."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write(name, content):
    def damage(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def set_json(name, **values):
    def damage(folder):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, **values}))

    return damage


def truncate(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def nothing(folder):
    pass


def check_refused(case, valid, folder):
    """That what the case calls on a damaged copy raises what it should, in a sentence, and changes no file."""
    damage, call, exception, message = case
    shutil.copytree(valid, folder)
    damage(folder)
    before = digest(folder)
    with pytest.raises(exception, match=rf"(?s){message}") as raised:
        call(folder)
    assert digest(folder) == before
    assert len(str(raised.value)) > 20  # a sentence, not a value
    assert type(raised.value) not in (UnicodeDecodeError, json.JSONDecodeError)
