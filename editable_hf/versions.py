"""Which releases of other libraries this one was tested with, and what is installed here."""

from __future__ import annotations

import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from packaging.version import Version

from editable_hf.version import __version__

# The oldest and the newest release that CI has run; constraints/ holds the whole sets.
TESTED = {
    "torch": ("2.9.1", "2.14.1"),
    "transformers": ("5.21.0", "5.24.0"),
    "datasets": ("4.0.0", "5.2.0"),
    "accelerate": ("1.12.0", "1.15.0"),
    "huggingface_hub": ("1.31.0", "2.4.0"),
    "safetensors": ("0.8.0", "0.8.0"),
    "sacrebleu": ("2.4.3", "2.6.0"),
    "sentencepiece": ("0.2.1", "0.2.3"),
    "sacremoses": ("0.1.1", "0.2.0"),
    "evaluate": ("0.4.6", "0.4.6"),
    "numpy": ("2.1.0", "2.4.6"),
}
INSIDE, NEWER, OLDER, MISSING = "tested", "newer than tested", "older than tested", "not installed"


def compare_versions() -> dict[str, dict[str, str | None]]:
    """For each library: the installed `version`, the `oldest` and `newest` release tested, and the `state`.

    A bug-fix release of a tested one (5.24.3 after 5.24.0) counts as tested.
    """
    return {name: _compare(name) for name in TESTED}


def warn_if_untested() -> None:
    """One warning if `transformers` is newer than what was tested: what breaks next is most often there."""
    report = _compare("transformers")
    if report["state"] == NEWER:
        newest = Version(report["newest"])
        older = f'pip install "transformers<{newest.major}.{newest.minor + 1}"'
        warnings.warn(
            f"editable_hf was tested with transformers up to {newest}, and {report['version']} is installed. If "
            f"something fails, `{older}`, and please report it with what `editable-hf env` prints.",
            stacklevel=3,  # the line that imports editable_hf
        )


def require_extra(package: str, extra: str) -> None:
    """Raises `ImportError` if a package that one of the extras of `setup.py` brings is not there."""
    if find_spec(package) is None:
        raise ImportError(f'This needs {package}, which is not installed: pip install "editable_hf[{extra}]".')


def library_versions() -> dict[str, str]:
    """Of this library, Python and what a result or a patch depends on, as far as it is installed."""
    packages = ("torch", "transformers", "accelerate", "datasets", "numpy", "sacrebleu", "sentencepiece", "sacremoses")
    extras = ("pillow", "optuna", "scikit-learn", "matplotlib")
    found = {name: _installed(name) for name in (*packages, *extras)}
    own = {"editable_hf": __version__, "python": platform.python_version()}
    return own | {name: value for name, value in found.items() if value is not None}


def describe_environment() -> dict[str, Any]:
    """What a bug report needs: versions, commit, machine and device."""
    import torch  # late: this module is a part of `import editable_hf`, and of `editable-hf --help`

    from editable_hf.experiments.report import COMMIT, describe_machine

    return {
        "editable_hf": __version__,
        "commit": COMMIT,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **describe_machine(),
        "cuda": torch.version.cuda,
        "libraries": compare_versions(),
    }


def format_environment(environment: dict[str, Any]) -> str:
    """A Markdown list to paste into a bug report, from [`describe_environment`]."""
    commit = "" if environment["commit"] is None else f" (commit {environment['commit']})"
    build = "CPUs" if environment["cuda"] is None else f"CUDA {environment['cuda']}"
    lines = [
        f"editable_hf: {environment['editable_hf']}{commit}",
        f"Python: {environment['python']}, {environment['platform']}",
        f"processor: {environment['processor']}, {environment['threads']} threads",
        f"device: {environment['device']}, torch built for {build}",
    ]
    for name, entry in environment["libraries"].items():
        span = entry["newest"] if entry["oldest"] == entry["newest"] else f"{entry['oldest']} to {entry['newest']}"
        state = INSIDE if entry["state"] == MISSING else entry["state"]
        lines.append(f"{name}: {entry['version'] or MISSING} ({state}: {span})")
    return "\n".join(f"- {line}" for line in lines)


def _compare(name: str) -> dict[str, str | None]:
    installed, (oldest, newest) = _installed(name), TESTED[name]
    state = MISSING if installed is None else _state(Version(installed), Version(oldest), Version(newest))
    return {"version": installed, "oldest": oldest, "newest": newest, "state": state}


def _state(installed: Version, oldest: Version, newest: Version) -> str:
    if installed < oldest:
        return OLDER
    return NEWER if installed.release[:2] > newest.release[:2] else INSIDE


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor_name() -> str:
    """As the system has it; the architecture where it has none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
