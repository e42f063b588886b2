from __future__ import annotations

import json
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from editable_hf import versions
from editable_hf.cli import main
from editable_hf.versions import INSIDE, MISSING, NEWER, OLDER, TESTED, compare_versions, warn_if_untested

pytestmark = pytest.mark.compat
ROOT = Path(__file__).parents[1]


def pinned(name):
    """Versions in constraints/NAME.txt by library; several where they depend on the Python."""
    found = {}
    for line in (ROOT / "constraints" / f"{name}.txt").read_text().splitlines():
        requirement = Requirement(line)
        found.setdefault(requirement.name.replace("-", "_"), []).append(Version(str(requirement.specifier)[2:]))
    return found


@pytest.mark.parametrize("name", TESTED)
def test_table_is_that_of_the_constraints(name):
    oldest, newest = map(Version, TESTED[name])
    assert oldest == min(pinned("oldest")[name])
    assert newest >= min(pinned("tested")[name])


def pretend(monkeypatch, installed):
    def version(name):
        if installed.get(name, TESTED[name][1]) is None:
            raise PackageNotFoundError(name)
        return installed.get(name, TESTED[name][1])

    monkeypatch.setattr(versions, "version", version)


@pytest.mark.parametrize(
    ("installed", "state"),
    [
        ("5.21.0", INSIDE),
        ("5.24.3", INSIDE),
        ("5.25.0", NEWER),
        ("6.0.0.dev0", NEWER),
        ("5.20.4", OLDER),
        (None, MISSING),
    ],
)
def test_state_and_warning(monkeypatch, installed, state):
    monkeypatch.setitem(TESTED, "transformers", ("5.21.0", "5.24.0"))
    pretend(monkeypatch, {"transformers": installed})
    assert compare_versions()["transformers"]["state"] == state
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_untested()
    assert len(caught) == (state == NEWER)
    for warning in caught:
        assert (
            f'up to 5.24.0, and {installed} is installed. If something fails, `pip install "transformers<5.25"`'
            in (str(warning.message))
        )


def imported_with_transformers_99(tmp_path, line):
    """What a process prints to stderr that runs `line`, then imports the package and uses it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "metadata.version = lambda name: '99.0' if name == 'transformers' else real(name)\n"
        f"{line}\n"
        "import editable_hf\n"
        "editable_hf.make_edit_requests\n"  # imported when it is first used
    )
    run = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True)
    return run.stderr


def test_import_warns_once_where_it_is_used(tmp_path):
    printed = imported_with_transformers_99(tmp_path, "")
    assert printed.count("UserWarning: editable_hf was tested with") == 1 and "Error" not in printed
    assert "script.py:5: UserWarning" in printed


def test_import_warns_before_it_fails(tmp_path):
    printed = imported_with_transformers_99(tmp_path, "sys.modules['transformers'] = None")
    assert printed.index("UserWarning: editable_hf was tested with") < printed.index("ModuleNotFoundError")


def test_import_looks_at_transformers_only(monkeypatch):
    pretend(monkeypatch, {"torch": "a build of my own"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_untested()


def test_environment_as_text_and_as_json(capsys, monkeypatch):
    pretend(monkeypatch, {"transformers": "9.0", "sacrebleu": None})
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert all(line.startswith("- ") for line in text.splitlines())
    assert "- torch: {1} (tested: {0} to {1})\n".format(*TESTED["torch"]) in text
    assert "- transformers: 9.0 (newer than tested: 5." in text
    assert "- sacrebleu: not installed (tested: {} to {})\n".format(*TESTED["sacrebleu"]) in text
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["libraries"]["transformers"]["state"] == NEWER and found["threads"] >= 1
