"""The repository keeps its own rules, and each rule catches what it is there for."""

import re
import tomllib
from pathlib import Path

import pytest

import house_rules as house
from house_rules import ROOT, Source

SOURCES = house.python_sources()
TEXT_FILES = (
    "*.md",
    "*.toml",
    "*.txt",
    "*.in",
    ".gitignore",
    ".ci/*",
    "docs/**/*.md",
    "tests/*.txt",
)
README_COMMANDS = (
    "pip install -c constraints.txt -e . && python -m fastcyclegan.train --compile",
    'pip install -c constraints.txt -e ".[test]" && pytest',
)


def requirements(name: str) -> list[str]:
    """The list INSTALL or TEST of setup.py, read without running it."""
    tree = house.ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, house.ast.Assign) and node.targets[0].id == name:
            return house.ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def declared(*names: str) -> set[str]:
    """Distribution names in those lists."""
    return {re.match(r"[\w.-]+", line)[0].lower() for name in names for line in requirements(name)}


def check_third_party(source: Source) -> list[str]:
    extras = ("EXPORT", "EVAL", "TRACK")
    allowed = declared("INSTALL", *extras, *(() if source.packaged else ("TEST",)))
    return house.check_third_party(source, allowed)


CHECKS = [
    house.check_floors,
    house.check_lazy_root,
    check_third_party,
    house.check_top_level_kernels,
    house.check_optional_triton,
    house.check_budgets,
    house.check_quiet,
    house.check_docstring,
    house.check_instance_norm,
    house.check_wrappers,
    house.check_wildcards,
    house.check_unpickling,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_repository_keeps_rule(check):
    assert [finding for source in SOURCES for finding in check(source)] == []


def test_sources_found():
    paths = {source.path for source in SOURCES}
    assert {"setup.py", "fastcyclegan/kernels.py", "tests/test_house.py"} <= paths
    assert any(path.startswith("kernels/") for path in paths)


LONG_BODY = "\n    x = 1" * 40
BROKEN = [
    (house.check_floors, "kernels/x.py", "from fastcyclegan.models import build"),
    (house.check_floors, "fastcyclegan/kernels.py", "import fastcyclegan.data"),
    (house.check_floors, "fastcyclegan/models/x.py", "from fastcyclegan.steps import losses"),
    (house.check_floors, "fastcyclegan/models/x.py", "from ..data import scan"),
    (house.check_floors, "fastcyclegan/models/__init__.py", "from ..runs.metrics import read"),
    (house.check_floors, "fastcyclegan/runs/x.py", "def f():\n    from fastcyclegan import steps"),
    (house.check_floors, "fastcyclegan/runs/x.py", "from fastcyclegan.train import main"),
    (house.check_floors, "fastcyclegan/runs/x.py", "from fastcyclegan import load_generator"),
    (house.check_floors, "fastcyclegan/translate.py", "from fastcyclegan.train import main"),
    (house.check_floors, "fastcyclegan/command.py", "from fastcyclegan.training import train"),
    (house.check_floors, "fastcyclegan/config.py", "from fastcyclegan.kernels import philox"),
    (house.check_floors, "fastcyclegan/helpers.py", "import math"),
    (house.check_lazy_root, "fastcyclegan/__init__.py", "import torch"),
    (house.check_lazy_root, "fastcyclegan/__init__.py", "from fastcyclegan.models import build"),
    (check_third_party, "fastcyclegan/models/x.py", "import scipy"),
    (check_third_party, "fastcyclegan/models/x.py", "import pytest"),
    (check_third_party, "tests/test_x.py", "import torchvision"),
    (check_third_party, "tests/test_x.py", "import cudnn"),
    (check_third_party, "fastcyclegan/config.py", "import torch"),
    (check_third_party, "fastcyclegan/models/x.py", "from rich.console import Console"),
    (check_third_party, "fastcyclegan/steps/x.py", "import triton"),
    (check_third_party, "kernels/x.py", "from PIL import Image"),
    (check_third_party, "kernels/x.py", "import nvtx"),
    (house.check_top_level_kernels, "kernels/__init__.py", ""),
    (house.check_top_level_kernels, "tests/test_x.py", "import kernels"),
    (house.check_top_level_kernels, "bench/bench_x.py", "from kernels.philox import uniform"),
    (house.check_optional_triton, "kernels/x.py", "import triton"),
    (house.check_optional_triton, "kernels/x.py", "from triton import language as tl"),
    (house.check_budgets, "fastcyclegan/models/x.py", "x = 1\n" * 351),
    (house.check_budgets, "kernels/x.py", "x = 1\n" * 501),
    (house.check_budgets, "fastcyclegan/models/x.py", f"def f():{LONG_BODY}"),
    (house.check_budgets, "kernels/x.py", f"def f():{LONG_BODY}{LONG_BODY}"),
    (house.check_quiet, "fastcyclegan/data/x.py", "print(1)"),
    (house.check_quiet, "kernels/x.py", "print(1)"),
    (house.check_quiet, "fastcyclegan/runs/x.py", "import argparse"),
    (house.check_quiet, "fastcyclegan/runs/x.py", "from argparse import ArgumentParser"),
    (house.check_quiet, "fastcyclegan/runs/x.py", "import sys\nsys.exit(2)"),
    (house.check_quiet, "fastcyclegan/runs/x.py", "from sys import exit"),
    (house.check_quiet, "fastcyclegan/runs/x.py", "import sys\nsys.stderr.write('x')"),
    (house.check_quiet, "fastcyclegan/config.py", "raise SystemExit(2)"),
    (house.check_docstring, "kernels/x.py", "x = 1"),
    (house.check_unpickling, "fastcyclegan/runs/x.py", "import pickle"),
    (house.check_unpickling, "kernels/x.py", "from cPickle import load"),
    (house.check_unpickling, "fastcyclegan/data/x.py", "def f():\n    import shelve"),
    (house.check_unpickling, "fastcyclegan/runs/x.py", "torch.load(path, weights_only=True)"),
    (house.check_unpickling, "fastcyclegan/models/x.py", "from torch import load"),
    (house.check_unpickling, "fastcyclegan/models/jz.py", "torch.jit.load(path)"),
    (house.check_unpickling, "fastcyclegan/runs/features.py", "torch.load(path)"),
    (house.check_unpickling, "fastcyclegan/models/x.py", "torch.hub.load(name)"),
    (house.check_unpickling, "fastcyclegan/data/x.py", "np.load(path)"),
    (house.check_unpickling, "fastcyclegan/config.py", "eval(text)"),
    (house.check_docstring, "fastcyclegan/runs/__init__.py", ""),
    (house.check_instance_norm, "kernels/x.py", "F.instance_norm(x)"),
    (house.check_instance_norm, "kernels/x.py", "torch.nn.functional.instance_norm(x)"),
    (house.check_instance_norm, "fastcyclegan/models/x.py", "nn.InstanceNorm2d(3)"),
    (house.check_instance_norm, "kernels/x.py", "from torch.nn.functional import instance_norm"),
    (house.check_wrappers, "fastcyclegan/steps/x.py", "nn.parallel.DistributedDataParallel(net)"),
    (house.check_wrappers, "bench/x.py", "from torch.nn.parallel import DistributedDataParallel"),
    (house.check_wildcards, "tests/test_x.py", "from math import *"),
]


@pytest.mark.parametrize(("check", "path", "text"), BROKEN)
def test_rule_catches(check, path, text):
    findings = check(Source(path, text))
    assert findings and all(finding.startswith(path) for finding in findings)


KEPT = [
    (house.check_floors, "fastcyclegan/train.py", "from fastcyclegan import data, kernels, runs"),
    (house.check_floors, "fastcyclegan/runs/x.py", "from fastcyclegan.runs import metrics"),
    (house.check_floors, "fastcyclegan/runs/x.py", "from . import metrics"),
    (house.check_floors, "fastcyclegan/models/x.py", "from ..errors import UserError"),
    (house.check_floors, "kernels/x.py", "from fastcyclegan.kernels.philox import uniform"),
    (house.check_lazy_root, "fastcyclegan/__init__.py", "def f():\n    import torch"),
    (check_third_party, "fastcyclegan/data/x.py", "import numpy as np\nfrom PIL import Image"),
    (check_third_party, "tests/test_x.py", "import hypothesis\nimport house_rules"),
    (check_third_party, "bench/bench_x.py", "import cudnn"),
    (house.check_top_level_kernels, "fastcyclegan/models/x.py", "from .. import kernels"),
    (house.check_top_level_kernels, "tests/test_x.py", "from fastcyclegan import kernels"),
    (house.check_optional_triton, "kernels/x.py", "if found:\n    import triton"),
    (house.check_budgets, "kernels/x.py", f"def f():{LONG_BODY}"),
    (house.check_quiet, "fastcyclegan/train.py", "import argparse, sys\nprint(1)\nsys.exit(0)"),
    (house.check_quiet, "fastcyclegan/options.py", "import argparse"),
    (house.check_quiet, "fastcyclegan/config.py", "class C:\n    input: str = 'x'"),
    (house.check_quiet, "fastcyclegan/runs/x.py", "console.print(1)"),
    (house.check_unpickling, "fastcyclegan/models/jz.py", "torch.load(file, weights_only=True)"),
    (house.check_unpickling, "fastcyclegan/runs/features.py", "torch.jit.load(file)"),
    (house.check_unpickling, "fastcyclegan/x.py", "safetensors.torch.load(data); re.compile('x')"),
    (
        house.check_unpickling,
        "fastcyclegan/x.py",
        "net.eval(); torch.compile(net); C.compile: bool",
    ),
    (house.check_unpickling, "tests/test_x.py", "import pickle\npickle.loads(x)"),
    (house.check_instance_norm, "fastcyclegan/models/x.py", "kernels.instance_norm(x)"),
    (
        house.check_instance_norm,
        "fastcyclegan/models/x.py",
        "from fastcyclegan.kernels.instance_norm import instance_norm",
    ),
]


@pytest.mark.parametrize(("check", "path", "text"), KEPT)
def test_rule_lets_through(check, path, text):
    assert check(Source(path, text)) == []


def text_files() -> list[Path]:
    """Every file of the repository that is read by people or programs as text."""
    found = {path for pattern in TEXT_FILES for path in ROOT.glob(pattern) if path.is_file()}
    return sorted(found | {ROOT / source.path for source in SOURCES})


def test_no_machine_paths_or_registry_hosts():
    found = []
    for path in text_files():
        name = path.relative_to(ROOT).as_posix()
        found += house.check_words(name, path.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "see /wo" + "rk/data",
        "'/ro" + "ot/x'",
        "/ho" + "me/me",
        "https://py" + "pi.org/x",
        "2.13.0+" + "cpu",
    ],
)
def test_words_are_caught(line):
    assert house.check_words("x.md", f"fine\n{line}\n")[0].startswith("x.md:2: ")


def test_one_version_number():
    found = [
        (s.path, v)
        for s in SOURCES
        if s.packaged or s.path == "setup.py"
        for v in house.version_numbers(s)
    ]
    assert [path for path, _ in found] == ["fastcyclegan/version.py"]
    number = re.compile(rf"(?<![\d.]){re.escape(found[0][1])}(?![\d.])")
    again = [
        path.relative_to(ROOT).as_posix()
        for path in text_files()
        if path.name != "constraints.txt" and number.search(path.read_text(encoding="utf-8"))
    ]
    assert again == ["fastcyclegan/version.py"]


def test_version_numbers_are_seen():
    text = '__version__ = "1.2"\n__version__: str = "1.3"\nsetup(version="1.4")\n'
    assert house.version_numbers(Source("setup.py", text)) == ["1.2", "1.3", "1.4"]
    assert "project" not in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", README_COMMANDS)
def test_readme_has_command(command):
    assert command in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()


def test_ci_runs_the_readme_test_command():
    install, test = README_COMMANDS[1].split(" && ")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert install in script and re.search(rf"\b{test}$", script, re.MULTILINE)
