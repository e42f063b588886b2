"""Finds the private and version-bound names of other libraries in a source text, for the test of the seams."""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from importlib.util import find_spec

# Documented submodules; everything else public is at the top of its library.
PUBLIC_SUBMODULES = {
    "accelerate.utils",
    "ctranslate2.converters",
    "huggingface_hub.constants",  # documented: environment variables
    "huggingface_hub.dataclasses",  # documented: strict dataclasses
    "huggingface_hub.errors",
    "huggingface_hub.utils",
    "safetensors.numpy",
    "safetensors.torch",
    "torch.accelerator",
    "torch.autograd",
    "torch.backends",
    "torch.cuda",
    "torch.distributed",
    "torch.func",
    "torch.linalg",
    "torch.nn",
    "torch.nn.attention",
    "torch.nn.functional",
    "torch.nn.init",
    "torch.nn.utils",
    "torch.nn.utils.rnn",
    "torch.optim",
    "torch.overrides",
    *("torch.random", "torch.utils.checkpoint", "torch.utils.data", "torch.version"),
    "transformers.modeling_outputs",
    "transformers.utils",  # documented: general utilities, logging, ModelOutput
}
WATCHED = {"accelerate", "ctranslate2", "huggingface_hub", "numpy", "safetensors", "torch", "transformers"}
# Documented although they begin with an underscore: named tuples, and what a metric of `evaluate` has to define.
DOCUMENTED = {"_asdict", "_fields", "_make", "_replace", "_info", "_compute"}
SUFFIXES = {"_before"}  # of columns
# Names that another release of transformers spells otherwise or does not have.
VERSION_BOUND = {"cache_position", "logits_to_keep", "num_logits_to_keep", "past_key_value", "past_key_values"}
VERSION_BOUND |= {"torch_dtype"}
VERSION_BOUND_KEYWORDS = {*VERSION_BOUND, "cache"}  # as a string it is an ordinary word
_COMPARING_ENDS = {"endswith", "removeprefix", "removesuffix", "startswith"}
_OWN_RECEIVERS = {"self", "cls"}


def is_private(name):
    return bool(re.fullmatch(r"_[A-Za-z]\w*", name)) and name not in DOCUMENTED


def own_names(trees):
    """Private names that are defined or assigned in our sources."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


@cache
def library_names(kind):
    """Private names that a class has from other libraries, also those its instances are given."""
    names = set()
    for base in inspect.getmro(kind):
        top = base.__module__.split(".")[0]
        if top in sys.stdlib_module_names or top in {"editable_hf", "builtins"}:
            continue
        if top not in WATCHED | {"datasets"}:
            continue
        names |= {name for name in vars(base) if is_private(name)}
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # written in C
            continue
        names |= {node.attr for node in ast.walk(tree) if _is_own_access(node) and is_private(node.attr)}
    return frozenset(names)


def overridden_names(kind):
    """Private names of other libraries that a class of ours defines, or uses as its own."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    used = own_names([ast.Module([tree], [])]) | {node.attr for node in ast.walk(tree) if _is_own_access(node)}
    return sorted(used & library_names(kind))


def _is_own_access(node):
    return isinstance(node, ast.Attribute) and _receiver(node) in _OWN_RECEIVERS | {"super()"}


def _receiver(node):
    return ast.unparse(node.value)


def violations(source, own, library):
    """`(line, name)` of each private or version-bound name of another library in a source text.

    `own` are the private names of our sources, `library` those of classes whose objects we are given.
    """
    nodes = list(ast.walk(ast.parse(source)))
    fragments = {part for node in nodes for part in _fragments(node)}
    found = []
    for node in (node for node in nodes if node not in fragments):
        found += [(node.lineno, name) for name in _names(node, own, library)]
    return sorted(set(found))


def _fragments(node):
    """Strings that are added to others, or looked for at the end of one."""
    if isinstance(node, ast.JoinedStr):
        yield from node.values
    elif isinstance(node, ast.BinOp):
        yield from (node.left, node.right)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _COMPARING_ENDS:
        yield from node.args


def _names(node, own, library):
    if isinstance(node, ast.Attribute):
        foreign = node.attr not in own or (node.attr in library and _receiver(node) not in _OWN_RECEIVERS)
        if is_private(node.attr) and foreign:
            yield node.attr
        yield from _hidden_modules(_receiver(node))
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield from _hidden_modules(alias.name)
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module != "__future__":
        yield from _hidden_modules(node.module)
        for alias in node.names:
            if is_private(alias.name):
                yield alias.name
            elif node.module in WATCHED:
                yield from _hidden_modules(f"{node.module}.{alias.name}")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        if node.value in VERSION_BOUND or (is_private(node.value) and node.value not in own - library | SUFFIXES):
            yield node.value
    elif isinstance(node, ast.keyword) and node.arg in VERSION_BOUND_KEYWORDS:
        yield node.arg


def _hidden_modules(dotted):
    """The name itself if it is that of a module that its library does not document."""
    parts = dotted.split(".")
    if any(is_private(part) for part in parts) and re.fullmatch(r"[\w.]+", dotted):
        if parts[0] in WATCHED:
            yield dotted
    elif parts[0] in WATCHED and len(parts) > 1 and dotted not in PUBLIC_SUBMODULES and _is_module(dotted):
        if not any(each.startswith(f"{dotted}.") for each in PUBLIC_SUBMODULES):  # `torch.utils` of `torch.utils.data`
            yield dotted


@cache
def _is_module(dotted):
    try:
        return bool(re.fullmatch(r"[\w.]+", dotted)) and find_spec(dotted) is not None
    except (ImportError, ValueError):
        return False
