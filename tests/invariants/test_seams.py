"""What depends on how another library is built inside stands in `editable_hf.seams`, and nowhere else."""

import ast
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import accelerate
import pytest
import torch
import transformers
from private_names import library_names, overridden_names, own_names, violations
from torch import nn
from transformers import PreTrainedModel, Trainer

import editable_hf
from editable_hf.seams import accelerate_seam, ctranslate2_seam, numpy_seam, torch_seam, transformers_seam

pytestmark = pytest.mark.compat

ROOT = Path(__file__).resolve().parents[2]
SEAM = ROOT / "editable_hf/seams"
FOLDERS = ("editable_hf", "recipes", "scripts", "benchmarks")
EVERY_FILE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FILES = [path for path in EVERY_FILE if SEAM not in path.parents]
OWN = own_names(ast.parse(path.read_text()) for path in FILES)
# Objects of these are in our hands all over the package.
HANDED = (Trainer, transformers.TrainingArguments, transformers.AutoModelForImageClassification, PreTrainedModel)
HANDED += (transformers.PreTrainedConfig, accelerate.Accelerator, accelerate.PartialState, torch.Tensor)
LIBRARY = frozenset().union(*map(library_names, HANDED))
SEAM_MODULES = (accelerate_seam, ctranslate2_seam, numpy_seam, torch_seam, transformers_seam)
VERSIONS = re.compile(r"\d+\.\d+\s+to\s+\d+\.\d+")


def package_modules():
    found = pkgutil.walk_packages(editable_hf.__path__, "editable_hf.")
    return [importlib.import_module(each.name) for each in found if not each.name.startswith("editable_hf.seams")]


def own_classes():
    kinds = {kind for module in package_modules() for kind in vars(module).values() if inspect.isclass(kind)}
    ours = (kind for kind in kinds if kind.__module__.startswith("editable_hf"))
    return sorted((kind for kind in ours if "seams" not in kind.__module__), key=lambda kind: kind.__qualname__)


def test_no_private_or_version_bound_name_outside_the_seam():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        for line, name in violations(path.read_text(), OWN, LIBRARY)
    ]
    assert not found, "do it publicly, or in editable_hf.seams:\n" + "\n".join(found)


def test_no_class_overrides_a_private_name_of_a_library():
    found = []
    for kind in own_classes():
        path, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
        found += [f"{path}:{line}: {kind.__qualname__}.{name}" for name in overridden_names(kind)]
    assert not found, "call it by a name of our own, by way of a hook in editable_hf.seams:\n" + "\n".join(found)


BAD = {
    "config._attn_implementation": "_attn_implementation",
    "config._attn_implementation = 'eager'": "_attn_implementation",
    "tensor._version": "_version",
    "model._new_name_of_a_library()": "_new_name_of_a_library",
    "class A(Trainer):\n    def f(self):\n        self._remove_unused_columns(None)": "_remove_unused_columns",
    "class A(Trainer):\n    def _save(self):\n        super()._save()": "_save",
    "getattr(model, '_original_forward', None)": "_original_forward",
    "from torch.nn.modules.batchnorm import _BatchNorm": "_BatchNorm",
    "from torch.nn.modules.batchnorm import BatchNorm2d": "torch.nn.modules.batchnorm",
    "from torch.utils import _pytree": "_pytree",
    "from torch.utils._pytree import tree_map": "torch.utils._pytree",
    "import torch.utils._pytree": "torch.utils._pytree",
    "torch.nn.modules.batchnorm.BatchNorm2d": "torch.nn.modules.batchnorm",
    "def f():\n    from accelerate.data_loader import prepare_data_loader": "accelerate.data_loader",
    "from transformers.trainer import TRAINER_STATE_NAME": "transformers.trainer",
    "from transformers import initialization": "transformers.initialization",
    "import numpy._core.multiarray": "numpy._core.multiarray",
    "model.generate(ids, cache=cache)": "cache",
    "model(ids, past_key_values=None)": "past_key_values",
    "inputs['past_key_values']": "past_key_values",
}
GOOD = """
from __future__ import annotations
from collections import namedtuple
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers.utils import logging

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self._kept = row._replace(a=1)
        self._kept._asdict()
        self.__dict__

    def _method(self, cache):
        return super()._method("cache", "__init__", torch.utils.data.Dataset, np.random.rand())
"""


@pytest.mark.parametrize(("source", "name"), BAD.items(), ids=[f"{i} {name}" for i, name in enumerate(BAD.values())])
def test_checker_finds(source, name):
    own = OWN | own_names([ast.parse(source)])
    assert name in [found for _, found in violations("\n" + source, own, LIBRARY)]


def test_checker_says_where():
    assert violations("x = 1\ny = tensor._version\n", OWN, LIBRARY) == [(2, "_version")]


def test_checker_allows_what_is_public_or_our_own():
    assert violations(GOOD, OWN | own_names([ast.parse(GOOD)]), LIBRARY) == []


class OverridesMethod(Trainer):
    def _save_checkpoint(self, model, trial):
        pass


class OverridesAttribute(PreTrainedModel):
    _supports_sdpa = True


class SetsInstanceAttribute(nn.Module):
    def set(self):
        self._forward_hooks = {}


class CallsMethod(transformers.Seq2SeqTrainer):
    def call(self):
        return self._get_output_dir(None)


class HasItsOwn(nn.Module):
    _kept = 1

    def _method(self):
        self._other = self._kept


CASES = [(OverridesMethod, "_save_checkpoint"), (OverridesAttribute, "_supports_sdpa")]
CASES += [(SetsInstanceAttribute, "_forward_hooks"), (CallsMethod, "_get_output_dir")]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_checker_of_classes_finds(kind, name):
    assert overridden_names(kind) == [name]


def test_checker_of_classes_allows_our_own():
    assert overridden_names(HasItsOwn) == []


def entries(module):
    """Public names of a seam's module, each with what is written about it."""
    source = inspect.getsource(module)
    lines, previous = source.splitlines(), 0
    for node in ast.parse(source).body:
        before = "\n".join(line for line in lines[previous : node.lineno - 1] if line.startswith("#"))
        previous = node.end_lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, ast.get_docstring(node) or ""
        elif isinstance(node, ast.Assign):
            yield node.targets[0].id, before.replace("\n# ", " ")
        elif isinstance(node, ast.ImportFrom) and "noqa: F401" in lines[node.lineno - 1]:
            yield node.names[0].asname or node.names[0].name, before.replace("\n# ", " ")


ENTRIES = [(module, name, text) for module in SEAM_MODULES for name, text in entries(module)]
every_entry = pytest.mark.parametrize(
    ("module", "name", "text"),
    ENTRIES,
    ids=[f"{module.__name__.split('.')[-1]}.{name}" for module, name, _ in ENTRIES],
)


def relied_on(text):
    """Names of other libraries in what is written about an entry."""
    return re.findall(r"`((?:accelerate|ctranslate2|numpy|torch|transformers)\.[\w.]+)`", text)


def resolve(dotted):
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for position, part in enumerate(parts[length:], start=length):
            last = position == len(parts) - 1
            if not hasattr(found, part) and last and inspect.isclass(found) and part in library_names(found):
                return None  # an attribute that instances are given
            assert hasattr(found, part), f"{dotted} is no more in {parts[0]} {resolve(parts[0] + '.__version__')}"
            found = getattr(found, part)
        return found
    raise AssertionError(f"{dotted} cannot be imported")


@every_entry
def test_entry_says_what_it_relies_on(module, name, text):
    assert "Relies on" in text and VERSIONS.search(text), (
        f"{module.__name__}.{name}: what, and which versions have it?"
    )
    assert relied_on(text) and hasattr(module, name)


@every_entry
def test_what_an_entry_relies_on_is_installed(module, name, text):
    for dotted in relied_on(text):
        resolve(dotted)


@pytest.mark.parametrize("dotted", ["transformers.Trainer._gone", "torch.utils._gone.tree_leaves", "torch.nn.Gone._x"])
def test_what_is_gone_is_said(dotted):
    with pytest.raises(AssertionError, match="is no more in (torch|transformers) "):
        resolve(dotted)


def test_seam_imports_nothing_of_ours():
    for path in SEAM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.ImportFrom) or not (node.level or node.module.startswith("editable_hf"))
    assert len(ast.parse((SEAM / "__init__.py").read_text()).body) == 1  # the docstring


@pytest.mark.parametrize("name", [name for name in vars(transformers_seam.TrainerHooks) if re.match("_[a-z]", name)])
def test_hooks_of_the_trainer_take_what_it_gives(name):
    ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (transformers_seam.TrainerHooks, Trainer))
    if not any(each.kind is each.VAR_KEYWORD for each in ours.parameters.values()):
        assert list(ours.parameters) == list(theirs.parameters)


def test_names_of_the_libraries():
    from transformers.trainer import TRAINER_STATE_NAME

    assert transformers_seam.TRAINER_STATE_NAME == TRAINER_STATE_NAME
    assert "model._original_forward = model.forward" in inspect.getsource(accelerate.Accelerator.prepare_model)
