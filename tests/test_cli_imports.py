"""Arguments are parsed before anything heavy is imported: help and a wrong flag answer at once."""

import json
import subprocess
import sys

import pytest

from house_rules import COMMANDS, ROOT

HEAVY = ["torch", "numpy", "rich", "triton", "PIL", "safetensors"]
PRESENT = [name for name in COMMANDS if (ROOT / "fastcyclegan" / f"{name}.py").is_file()]
# Runs a module as `python -m` does, then reports on stderr which heavy modules it imported.
PROBE = """
import json, runpy, sys
module, heavy, *sys.argv[1:] = sys.argv[1:]
code = None
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
except SystemExit as stop:
    code = stop.code
loaded = [name for name in json.loads(heavy) if name in sys.modules]
print(json.dumps([code, loaded]), file=sys.stderr)
"""


def probe(module: str, *words: str) -> tuple[int | None, list[str], str, str]:
    """Exit code, heavy modules imported, stdout and stderr of ``python -m module words``."""
    command = [sys.executable, "-c", PROBE, module, json.dumps(HEAVY), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *errors, last = done.stderr.splitlines()
    code, loaded = json.loads(last)
    return code, loaded, done.stdout, "\n".join(errors)


def test_both_commands_exist():
    assert PRESENT[:2] == ["train", "translate"]


@pytest.mark.parametrize("command", PRESENT)
def test_help_imports_nothing_heavy(command):
    code, loaded, out, err = probe(f"fastcyclegan.{command}", "--help")
    assert (code, loaded, err) == (0, [], "")
    assert out.startswith(f"usage: python -m fastcyclegan.{command}")


@pytest.mark.parametrize("command", PRESENT)
def test_wrong_flag_imports_nothing_heavy(command):
    code, loaded, out, err = probe(f"fastcyclegan.{command}", "--no_such_flag_at_all")
    assert (code, loaded, out) == (2, [], "")
    assert "--no_such_flag_at_all" in err and "Traceback" not in err


def test_package_imports_nothing_heavy():
    assert probe("fastcyclegan.version")[1] == []


def test_probe_sees_imports():
    code, loaded, *_ = probe("fastcyclegan.kernels.philox")
    assert code is None and "torch" in loaded
