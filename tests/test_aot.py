"""Every kernel of the networks, compiled ahead of time for each architecture; needs no GPU."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench" / "results" / "resources.json"
ARCHS = (80, 86, 89, 90, 100, 120)


# Two processes at a time; fp32 on one architecture: its code differs in the width of a load only.
PARTS = {
    "low": ("--arch", "80", "86", "89"),
    "high": ("--arch", "90", "100", "120"),
    "fp32": ("--arch", "90", "--dtype", "float32"),
}


def compile_part(name: str, folder: Path) -> list[dict]:
    """The figures of ``python -m bench.resources``, from a process outside of the interpreter."""
    out = folder / f"{name}.json"
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.resources", "--out", str(out), *PARTS[name]]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aot")
    with ThreadPoolExecutor(max_workers=2) as pool:
        return [row for part in pool.map(lambda n: compile_part(n, folder), PARTS) for row in part]


def test_every_kernel_on_every_architecture(rows):
    kernels = {row["kernel"] for row in rows}
    assert len(kernels) == 6
    for kernel in kernels:
        assert {row["arch"] for row in rows if row["kernel"] == kernel} == set(ARCHS)


def test_nothing_spills(rows):
    assert [row for row in rows if row["stack"] or row["local"]] == []


def test_16_byte_accesses(rows):
    """Loads everywhere, stores where an image is written; 3 channels cannot be aligned."""
    aligned = [row for row in rows if "3 channels" not in row["case"]]
    assert aligned and all(row["loads_16_bytes"] for row in aligned)
    writers = [
        row for row in aligned if "stats" not in row["kernel"] and "sums" not in row["kernel"]
    ]
    assert writers and all(row["stores_16_bytes"] for row in writers)


def test_registers_do_not_grow(rows):
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["dtype"] == "bfloat16":
            name = f"{row['kernel']}, {row['case']}, {row['dtype']}"
            found.setdefault(name, {})[f"sm_{row['arch']}"] = row["registers"]
    assert found.keys() == table["registers"].keys()
    if metadata.version("triton") != table["triton"]:
        return  # another compiler: its counts are its own
    grown = {
        name: counts
        for name, counts in found.items()
        if any(count > table["registers"][name][arch] for arch, count in counts.items())
    }
    assert grown == {}
