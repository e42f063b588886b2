"""Rules of the house that a linter does not know."""

import ast
import importlib
import inspect
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 350, 60
SEAMS_OF_CORE = {"editable_hf.seams.torch_seam", "editable_hf.seams.accelerate_seam"}
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

PACKAGES = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "editable_hf").rglob("__init__.py"))
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("editable_hf", "recipes", "scripts", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
)
TEST_FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py"))
every_file = pytest.mark.parametrize("path", FILES, ids=str)
tests_too = pytest.mark.parametrize("path", FILES + TEST_FILES, ids=str)
DISTRIBUTIONS = packages_distributions()


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("path", [path for path in FILES if "core" in path.parts], ids=str)
def test_core_imports_only_torch_the_standard_library_and_itself(path):
    for module in imported_modules(ast.parse((ROOT / path).read_text())):
        top = module.split(".")[0]
        allowed = top == "torch" or top in sys.stdlib_module_names or f"{module}.".startswith("editable_hf.core.")
        assert allowed or module in SEAMS_OF_CORE, f"{path} imports {module}"


@pytest.mark.parametrize("module", sorted(SEAMS_OF_CORE))
def test_seams_of_core_import_only_torch_and_the_standard_library(module):
    """At once, that is: what a function imports, a program that does not call it can do without."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    at_once = ast.Module(
        [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.FunctionDef)], []
    )
    for name in imported_modules(at_once):
        assert name.split(".")[0] in {"torch", *sys.stdlib_module_names}, f"{path} imports {name}"


@tests_too
def test_files_are_short(path):
    lines = len((ROOT / path).read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines; split it by concept"


@tests_too
def test_functions_are_short(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{path}: {node.name} has {lines} lines"


@tests_too
def test_files_are_named_after_their_concept(path):
    assert not VAGUE_NAMES & {part.removesuffix(".py") for part in path.parts}


@every_file
def test_nothing_is_left_to_do(path):
    text = (ROOT / path).read_text()
    assert not [word for word in ("TO" + "DO", "FIX" + "ME") if word in text]


def declared_requirements():
    """Names of the distributions that setup.py installs without any extra."""
    calls = [node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword)]
    (required,) = (ast.literal_eval(node.value) for node in calls if node.arg == "install_requires")
    return {re.match(r"[\w-]+", each)[0].lower().replace("_", "-") for each in required}


@pytest.mark.parametrize("path", [path for path in FILES if path.parts[0] == "editable_hf"], ids=str)
def test_what_is_imported_at_once_is_installed_at_once(path):
    """Imports within a function may come from an extra; those of a module must not."""
    body = ast.parse((ROOT / path).read_text()).body
    at_once = ast.Module([node for node in body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    for module in imported_modules(at_once):
        top = module.split(".")[0]
        if top and top != "editable_hf" and top not in sys.stdlib_module_names:
            names = {name.lower().replace("_", "-") for name in DISTRIBUTIONS[top]}
            assert names & declared_requirements(), f"{path} imports {module}, which setup.py does not require"


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_public_names_are_importable_and_documented(package):
    module = importlib.import_module(".".join(package.parts))
    assert module.__doc__
    names = list(getattr(module, "__all__", ()))
    assert len(names) == len(set(names))
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            # dataclasses and NamedTuples that have no docstring are given their signature as one
            documented = value.__doc__ and not value.__doc__.startswith(f"{name}(")
            assert documented, f"{'.'.join(package.parts)}.{name} has no docstring"


def test_something_was_checked():
    assert Path("editable_hf/core/editing.py") in FILES and Path("editable_hf/core") in PACKAGES
