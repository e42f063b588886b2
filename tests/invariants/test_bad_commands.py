"""A wrong command line exits with 2 and a reason, without a traceback, and changes nothing on disk."""

from __future__ import annotations

import pytest
from damage import digest

from editable_hf.cli import main

COMMANDS = {
    "no command": ([], "usage"),
    "unknown command": (["mend"], "invalid choice"),
    "edit: no model": (["edit", "NOWHERE", "--source", "a", "--target", "b", "-o", "OUT"], "NOWHERE"),
    "edit: no source": (
        ["edit", "MODEL", "--target", "b", "-o", "OUT"],
        "Give one of --source, --image and --requests",
    ),
    "edit: both": (
        ["edit", "MODEL", "--source", "a", "--image", "b.png", "--target", "b", "-o", "OUT"],
        "Give one of --source",
    ),
    "edit: two sources, one target": (
        ["edit", "MODEL", "--source", "a", "--source", "b", "--target", "c", "-o", "OUT"],
        "one --target for each --source, got 1 for 2",
    ),
    "edit: output is there": (["edit", "MODEL", "--source", "a", "--target", "b", "-o", "PATCH"], "is there already"),
    "edit: not a number": (
        ["edit", "MODEL", "--source", "a", "--target", "b", "-o", "OUT", "--learning_rate", "fast"],
        "invalid float value: 'fast'",
    ),
    "edit: encoding": (
        ["edit", "MODEL", "--source", "ein hund .", "--target", "a dog .", "-o", "OUT", "--encoding", "zip"],
        "'zip'",
    ),
    "edit: empty source": (["edit", "MODEL", "--source", " ", "--target", "b", "-o", "OUT"], "is empty"),
    "edit: no such layer": (
        ["edit", "MODEL", "--source", "ein", "--target", "a dog", "-o", "OUT", "--layers", "chain9"],
        "chain9",
    ),
    "apply: no such patch": (["apply", "MODEL", "NOWHERE", "-o", "OUT"], "NOWHERE"),
    "apply: a model as a patch": (["apply", "MODEL", "MODEL", "-o", "OUT"], "patch.json is missing"),
    "apply: health of a translation model": (
        ["apply", "MODEL", "PATCH", "-o", "OUT", "--health", "NOWHERE.txt", "--max_kl", "1"],
        "Expected a decoder-only language model",
    ),
    "revert: not applied": (["revert", "MODEL", "PATCH", "-o", "OUT"], "no patch is applied"),
    "diff: no data": (["diff", "MODEL", "PATCH"], "--data"),
    "diff: no such data": (["diff", "MODEL", "PATCH", "--data", "NOWHERE.tsv"], "NOWHERE.tsv"),
    "export: to nowhere": (["export", "MODEL", "-o", "OUT"], "--to"),
    "export: no patch": (["export", "MODEL", "--to", "lora", "-o", "OUT"], "Give the --patches"),
    "export: no such patch": (["export", "MODEL", "--to", "lora", "--patches", "NOWHERE", "-o", "OUT"], "NOWHERE"),
    "export: rank for ctranslate2": (
        ["export", "MODEL", "--to", "ctranslate2", "--rank", "8", "-o", "OUT"],
        "--rank cannot be used with --to ctranslate2",
    ),
    "export: data for lora": (
        ["export", "MODEL", "--to", "lora", "--patches", "PATCH", "--data", "NOWHERE.txt", "-o", "OUT"],
        "--data cannot be used with --to lora",
    ),
    "export: quantization": (
        ["export", "MODEL", "--to", "ctranslate2", "--quantization", "int3", "-o", "OUT"],
        "int3 is not a valid quantization",
    ),
    "list: nothing": (["list", "NOWHERE"], "NOWHERE"),
}


@pytest.mark.parametrize("name", list(COMMANDS))
def test_command_exits_with_2_and_a_reason(name, valid, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    words, message = COMMANDS[name]
    places = {"MODEL": str(valid / "model"), "PATCH": str(valid / "patch"), "OUT": str(tmp_path / "out")}
    before = digest(valid)
    try:
        code = main([places.get(word, word) for word in words])
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert code == 2, printed.out
    assert message in printed.err and "Traceback" not in printed.err
    assert digest(valid) == before and not (tmp_path / "out").exists()
