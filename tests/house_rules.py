"""The rules of this code base as functions of source text.

Each checker returns its findings as one-line strings, empty when the rule holds; ``test_house.py``
runs them on the repository and on snippets that break them.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("train", "translate", "sample", "evaluate", "export", "doctor", "checkpoint", "report")
CODE_FOLDERS = ("fastcyclegan", "kernels", "tests", "bench")
DISTRIBUTION_OF = {"PIL": "pillow"}

# A module may import from floors with a higher number, and from its own unit.
FLOORS = {name: 0 for name in COMMANDS}
FLOORS |= {"training": 1, "dry_run": 1, "translation": 1, "recorder": 2, "feed": 2, "profiling": 3}
FLOORS |= {"diagnosis": 1, "skips": 3, "judge": 3, "out_of_memory": 3, "systems": 4, "command": 4}
FLOORS |= {"preparation": 2, "resuming": 3, "runs": 5, "steps": 5, "op_checks": 6}
FLOORS |= {"models": 6, "data": 6, "device": 6, "memory": 6, "kernels": 7}
FLOORS |= {"meeting": 7, "distributed": 8}
MAY_SPEAK = (*COMMANDS, "command")
# May be imported from anywhere; import nothing but each other and the standard library.
FREE = ("errors", "options", "config", "jz_options", "files", "pixel_range", "presets")
FREE += ("launch", "scores", "trackers", "version")
# The units that may use a third-party package; what is not named here may be used in all.
ONLY_IN = {
    "onnxruntime": {"export"},
    "torchmetrics": {"runs"},
    "triton": {"kernels"},
    "rich": {*COMMANDS, "training", "dry_run", "runs"},
    "jinja2": {"runs"},
    "tensorboard": {"runs"},
    "safetensors": {"recorder", "runs", "models"},
    "PIL": {*COMMANDS, "runs", "data"},
}
# What would run a file that it reads: the one reader of pickles, and TorchScript on command.
MAY_UNPICKLE = {
    "fastcyclegan/models/jz.py": ("torch.load",),
    "fastcyclegan/runs/features.py": ("torch.jit.load",),
}
KERNELS_MAY_USE = {"torch", "triton", "numpy"}
# Compared with in benches where it happens to be installed.
OPTIONAL_IN_BENCHES = {"cudnn"}


@dataclass(frozen=True)
class Source:
    """One Python file: its path relative to the repository, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        """Import name: ``kernels/x.py`` is ``fastcyclegan.kernels.x``."""
        parts = Path(self.path).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        return ".".join(("fastcyclegan", *parts) if parts[0] == "kernels" else parts)

    @property
    def packaged(self) -> bool:
        return self.path.split("/")[0] in ("fastcyclegan", "kernels")

    @property
    def unit(self) -> str:
        """The room a packaged file belongs to: train, runs, kernels; "" for the package's root."""
        return unit_of(self.module)

    def at(self, node: ast.AST) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


def python_sources(root: Path = ROOT) -> list[Source]:
    """Every Python file of the repository, in a fixed order."""
    found = [path for folder in CODE_FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    return [
        Source(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
        for path in [root / "setup.py", *found]
    ]


def unit_of(module: str) -> str:
    """``fastcyclegan.runs.metrics`` is in unit ``runs``."""
    return module.split(".")[1] if module.count(".") else ""


def imported_modules(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Each import statement with the absolute name of each module or member that it asks for."""
    package = (
        source.module if source.path.endswith("__init__.py") else source.module.rpartition(".")[0]
    )
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if node.level else []
            base = parents[: len(parents) - node.level + 1] + ([node.module] if node.module else [])
            yield from ((node, ".".join([*base, alias.name])) for alias in node.names)


def third_party(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Imports of packages that are neither ours nor in the standard library."""
    ours = {"fastcyclegan", "setuptools", "bench"}
    ours |= {path.stem for folder in ("tests", "bench") for path in (ROOT / folder).rglob("*.py")}
    for node, name in imported_modules(source):
        top = name.split(".")[0]
        if top and top not in sys.stdlib_module_names and top not in ours:
            yield node, top


def check_floors(source: Source) -> list[str]:
    """Imports inside the package only go down, and never sideways."""
    unit = source.unit
    if not source.packaged or unit == "":
        return []
    if unit not in FLOORS and unit not in FREE:
        return [f"{source.path}: '{unit}' is on no floor; place it in tests/house_rules.py"]
    found = []
    for node, name in imported_modules(source):
        target = unit_of(name) if name.split(".")[0] == "fastcyclegan" else None
        if target in (None, unit, *FREE):
            continue
        if unit in FREE or target not in FLOORS or FLOORS[target] <= FLOORS[unit]:
            found.append(f"{source.at(node)}: {unit} must not import {name}")
    return found


def check_lazy_root(source: Source) -> list[str]:
    """``fastcyclegan/__init__`` imports nothing at its top but the standard library and FREE."""
    if source.path != "fastcyclegan/__init__.py":
        return []
    inside = {id(n) for f in functions(source) for n in ast.walk(f)}
    guarded = {
        id(n)
        for block in ast.walk(source.tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for n in ast.walk(block)
    }
    return [
        f"{source.at(node)}: imports {name} before it is asked for"
        for node, name in imported_modules(source)
        if id(node) not in inside | guarded
        and name.split(".")[0] not in sys.stdlib_module_names
        and unit_of(name) not in FREE
    ]


def check_third_party(source: Source, declared: set[str]) -> list[str]:
    """Third-party packages are declared in setup.py and used on the floors made for them."""
    found = []
    optional = OPTIONAL_IN_BENCHES if source.path.startswith("bench/") else set()
    for node, top in third_party(source):
        if top in optional:
            continue
        if DISTRIBUTION_OF.get(top, top).lower().replace("_", "-") not in declared:
            found.append(f"{source.at(node)}: {top} is not declared in setup.py")
        elif source.packaged and not _may_use(source.unit, top):
            found.append(f"{source.at(node)}: {source.unit} must not import {top}")
    return found


def _may_use(unit: str, top: str) -> bool:
    if unit in FREE:
        return False
    if unit == "kernels" and top not in KERNELS_MAY_USE:
        return False
    return unit in ONLY_IN.get(top, {unit})


def check_top_level_kernels(source: Source) -> list[str]:
    """``kernels`` belongs to another project on PyPI: ours is ``fastcyclegan.kernels``."""
    if source.path == "kernels/__init__.py":
        return [f"{source.path}: would make kernels a top-level package"]
    return [
        f"{source.at(node)}: import fastcyclegan.kernels, not {name}"
        for node, name in imported_modules(source)
        if name.split(".")[0] == "kernels" and not getattr(node, "level", 0)
    ]


def check_optional_triton(source: Source) -> list[str]:
    """kernels/*.py import without triton: an import of it stands inside a try, an if or a def."""
    if source.unit != "kernels":
        return []
    return [
        f"{source.at(node)}: triton imported without a guard"
        for node in source.tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or node.names[0].name]
        if name.split(".")[0] == "triton"
    ]


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def check_budgets(source: Source) -> list[str]:
    """Files of at most 350 lines (500 in kernels/), functions of at most 40 (kernels 80)."""
    in_kernels = source.path.startswith("kernels/")
    file_limit, function_limit = (500, 80) if in_kernels else (350, 40)
    lines = len(source.text.splitlines())
    found = [f"{source.path}: {lines} lines, at most {file_limit}"] if lines > file_limit else []
    for node in functions(source):
        lines = node.end_lineno - node.lineno + 1
        if lines > function_limit:
            found.append(
                f"{source.at(node)}: {node.name} has {lines} lines, at most {function_limit}"
            )
    return found


def check_quiet(source: Source) -> list[str]:
    """Only commands print, parse arguments or exit; options.py builds the parsers."""
    if not source.packaged or source.unit in MAY_SPEAK:
        return []
    banned = {"print", "input", "exit", "quit", "SystemExit", "sys.exit", "os._exit"}
    banned |= {"sys.stdout", "sys.stderr"}
    found = []
    for node in ast.walk(source.tree):
        named = isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)
        name = ast.unparse(node) if named else ""
        if name in banned:
            found.append(f"{source.at(node)}: {name} outside a command")
    for node, name in imported_modules(source):
        if name == "argparse" or name.startswith("argparse."):
            if source.unit != "options":
                found.append(f"{source.at(node)}: argparse outside a command")
        elif name in banned:
            found.append(f"{source.at(node)}: {name} outside a command")
    return found


def check_docstring(source: Source) -> list[str]:
    """Each packaged file says what it is."""
    if source.packaged and not ast.get_docstring(source.tree):
        return [f"{source.path}: no module docstring"]
    return []


def check_instance_norm(source: Source) -> list[str]:
    """PyTorch's instance norm is silently wrong on channels_last CPU gradients (torch 2.13)."""
    if not source.packaged:
        return []
    builtin = re.compile(
        r"(^|\.)(InstanceNorm[123]d|LazyInstanceNorm[123]d)$"
        r"|(^F|(^|\.)functional|^torch|^(torch\.ops\.)?aten)\.instance_norm$"
    )
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.Name | ast.Attribute)]
    used = [(n, ast.unparse(n)) for n in nodes] + list(imported_modules(source))
    return [f"{source.at(node)}: {name} is banned" for node, name in used if builtin.search(name)]


def check_unpickling(source: Source) -> list[str]:
    """Nothing unpickles but the one reader of ``.pth``, nothing runs a file but where that is said.

    Of torch.distributed's objects, which are pickles between processes of one training, see
    docs/security.md.
    """
    if not source.packaged:
        return []
    modules = re.compile(
        r"_?(c?pickle|dill|cloudpickle|joblib|marshal|shelve)(\.|$)", re.IGNORECASE
    )
    calls = re.compile(
        r"(torch\.)?(jit\.load|hub\.\w+|package\.\w+|serialization\.\w+)|torch\.load|"
        r"(np|numpy)\.load|eval|exec|compile|__import__"
    )
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.Name | ast.Attribute)]
    used = [(n, ast.unparse(n)) for n in nodes if isinstance(n.ctx, ast.Load)]
    imported = list(imported_modules(source))
    found = [(node, name) for node, name in imported if modules.match(name)]
    found += [(node, name) for node, name in used + imported if calls.fullmatch(name)]
    allowed = MAY_UNPICKLE.get(source.path, ())
    return [
        f"{source.at(n)}: {name} runs what it reads" for n, name in found if name not in allowed
    ]


def check_wrappers(source: Source) -> list[str]:
    """Gradients are summed in ``steps/gradients.py``, from the step's own backward."""
    if source.path.startswith("tests/"):
        return []
    wrapper = re.compile(
        r"(^|\.)(DistributedDataParallel|DataParallel|DDP|FullyShardedDataParallel)$"
    )
    nodes = [n for n in ast.walk(source.tree) if isinstance(n, ast.Name | ast.Attribute)]
    used = [(n, ast.unparse(n)) for n in nodes] + list(imported_modules(source))
    return [f"{source.at(node)}: {name} is banned" for node, name in used if wrapper.search(name)]


def check_wildcards(source: Source) -> list[str]:
    """Nothing is imported by ``*``."""
    return [
        f"{source.at(node)}: {name}"
        for node, name in imported_modules(source)
        if name.endswith(".*") or name == "*"
    ]


def check_words(path: str, text: str) -> list[str]:
    """No path of one machine and no registry host in any text of the repository."""
    # A bracket in each pattern keeps this file from matching itself.
    banned = (
        r"(?<![\w.~-])/(work|root|home)[/]\w",
        r"pypi[.]org|pythonhosted[.]org|npmjs[.]org|debian[.]org|download[.]pytorch",
        r"[+]cpu\b",
    )
    return [
        f"{path}:{number}: '{match[0]}' must not be written here"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in banned
        for match in [re.search(pattern, line)]
        if match
    ]


def version_numbers(source: Source) -> list[str]:
    """Values assigned to ``__version__`` or passed as ``version="..."`` in this file."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = any(isinstance(t, ast.Name) and t.id == "__version__" for t in targets)
        else:
            named = isinstance(node, ast.keyword) and node.arg == "version"
        if named and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found.append(node.value.value)
    return found
