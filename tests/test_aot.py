"""Every kernel of the networks, compiled ahead of time for each architecture; needs no GPU."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from fastcyclegan.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "bench" / "results" / "resources.json"
FIGURES = "registers, shared"
ARCHS = (80, 86, 89, 90, 100, 120)


# Two processes at a time. The code for the other dtypes differs in the width of loads and stores.
PARTS = {
    "low": ("--few", "--dtype", "bfloat16", "--arch", "80", "86", "89"),
    "high": ("--few", "--dtype", "bfloat16", "--arch", "90", "100", "120"),
    "fp32": ("--few", "--dtype", "float32", "--arch", "90"),
    "fp16": ("--few", "--dtype", "float16", "--arch", "90"),
}
# Every size, batch and network; all dtypes and architectures take more than ten minutes.
ALL_PARTS = {
    "narrow": ("--dtype", "bfloat16", "--arch", "90"),
    "wide": ("--dtype", "float32", "--arch", "90"),
}


def resources(out: Path, words: tuple[str, ...]) -> list[dict[str, Any]]:
    """The figures of ``python -m bench.resources``, from a process outside of the interpreter."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.resources", "--out", str(out), *words]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=800)
    spills = [line for line in done.stderr.splitlines() if line.startswith("spills: ")]
    assert done.returncode == bool(spills), done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


def compiled(parts: dict[str, tuple[str, ...]], folder: Path) -> list[dict[str, Any]]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        found = pool.map(lambda name: resources(folder / name, parts[name]), parts)
        return [row for rows in found for row in rows]


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return compiled(PARTS, tmp_path_factory.mktemp("aot"))


@pytest.fixture(scope="module")
def table():
    return json.loads(TABLE.read_text(encoding="utf-8"))


def test_every_kernel_on_every_architecture(rows):
    kernels = {row["kernel"] for row in rows}
    assert len(kernels) == 12
    for kernel in kernels:
        assert {row["arch"] for row in rows if row["kernel"] == kernel} == set(ARCHS)


def spilling(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [row for row in rows if row["stack"] or row["local"]]
    if metadata.version("triton").startswith("3.6."):
        # eight bytes, in the last norm of a ResNet
        known = {"kernel": "instance_norm_fwd_kernel", "arch": 120, "stack": 8, "local": 0}
        found = [row for row in found if not known.items() <= row.items()]
    return found


def test_nothing_spills(rows):
    assert spilling(rows) == []


def test_16_byte_accesses(rows):
    """Loads everywhere, stores where an image is written, unless images begin in between."""
    aligned = [
        row for row in rows if "x3x" not in row["case"] and "3 channels pad 3" not in row["case"]
    ]
    # Windows of 8-bit images begin at any byte; the others have a few numbers to read.
    others = ("augment_kernel", "batch_norm_finish_kernel", "draw_windows_kernel")
    readers = [row for row in aligned if row["kernel"] not in others]
    assert readers and all(row["loads_16_bytes"] for row in readers)
    writers = [
        row
        for row in aligned
        if not any(word in row["kernel"] for word in ("stats", "sums", "finish", "windows"))
    ]
    assert writers and all(row["stores_16_bytes"] for row in writers)


def test_the_table_has_every_configuration_of_the_networks(tmp_path, table):
    """None that they do not use either: it is recorded from them, without compiling."""
    names = {key(row) for row in resources(tmp_path / "none", ("--list",))}
    assert names == table[FIGURES].keys()
    archs = {f"sm_{arch}" for arch in ARCHS}
    assert all(figures.keys() == archs for figures in table[FIGURES].values())


def test_what_presets_alone_have_is_among_the_configurations():
    from bench import net_calls

    for name in PRESETS:
        assert {arch["class"] for arch, _ in net_calls.preset_cases(name)}
    calls = net_calls.op_calls(torch.bfloat16, net_calls.NETWORKS, (256,), (2,))
    assert any(op == "reflection_pad_fwd" and given["pad"] == 40 for op, given in calls)
    norms = [given for op, given in calls if op == "instance_norm_fwd"]
    assert any(given["weight"] is not None and not dense(given["residual"]) for given in norms)
    assert any(given["residual_relu"] for given in norms)
    assert any(given["x"].shape == (1, 32, 256, 256) for given in norms)


def dense(x: torch.Tensor | None) -> bool:
    return x is None or x.is_contiguous(memory_format=torch.channels_last)


def test_two_configurations_of_one_name_are_refused():
    from bench.resources import tabulated

    row = {"kernel": "k", "case": "c", "dtype": "d", "arch": 90, "registers": 32, "shared": 0}
    assert tabulated([row, {**row, "arch": 80}]) == {
        "k, c, d": {"sm_90": [32, 0], "sm_80": [32, 0]}
    }
    with pytest.raises(ValueError, match="two configurations are called k, c, d"):
        tabulated([row, row])


def key(row: dict[str, Any]) -> str:
    return f"{row['kernel']}, {row['case']}, {row['dtype']}"


def grown(rows: list[dict[str, Any]], table: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that need more registers or shared memory than the table has for them."""
    if metadata.version("triton") != table["triton"]:
        return []  # another compiler: its counts are its own
    found = []
    for row in rows:
        registers, shared = table[FIGURES][key(row)][f"sm_{row['arch']}"]
        if row["registers"] > registers or row["shared"] > shared:
            found.append(row)
    return found


def test_registers_and_shared_memory_do_not_grow(rows, table):
    assert grown(rows, table) == []
    for more in ({"registers": 256}, {"shared": 2**20}):
        grew = {**rows[0], **more}
        assert grown([grew], {**table, "triton": metadata.version("triton")}) == [grew]


@pytest.mark.slow
def test_every_configuration_of_the_networks(tmp_path, table):
    rows = compiled(ALL_PARTS, tmp_path)
    assert spilling(rows) == []
    assert grown(rows, table) == []
