"""Bytes through device memory as Nsight Compute counts them, beside those that must be moved.

    ncu ... python -m bench.gpu_suite.counters CASE

CASE is the name of a case of :mod:`bench.norm_cases`. One forward and one backward of the norm's
kernels lie between the calls that begin and end a profile.
"""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Sequence

import torch

from bench.gpu_suite.cases import Result
from bench.gpu_suite.processes import TEXT, python
from bench.norm_cases import CASES, LARGE, TRUNK, Case, Run, counted_bytes

PROGRAM = "ncu"
# The trunk of a batch of eight, and beyond the L2 cache.
COUNTED = (TRUNK[-1], LARGE[0])
READ, WRITTEN, TIME = "dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum"
HOW = ["--clock-control", "none", "--profile-from-start", "off", "--kernel-name"]
HOW += ["regex:instance_norm", "--metrics", f"{READ},{WRITTEN},{TIME}"]
HOW += ["--csv", "--page", "raw", "--print-units", "base"]


def profiler() -> str | None:
    """ncu, on the PATH or beside the CUDA compiler."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(PROGRAM) or shutil.which(PROGRAM, path=f"{home}/bin")


def count(case: Case) -> Result:
    """The bytes and microseconds of each kernel of ``case``, and the bytes that were counted.

    Raises:
        RuntimeError: the profiler came to no end, or saw no kernel.
    """
    words = ["-m", "bench.gpu_suite.counters", str(case)]
    done = python(words, before=[profiler() or PROGRAM, *HOW])
    kernels = parsed(done.stdout)
    if done.returncode or not kernels:
        said = (done.stdout + done.stderr).strip()[-TEXT:]
        raise RuntimeError(f"ncu ended with exit code {done.returncode}\n{said}")
    moved = sum(kernel["read"] + kernel["written"] for kernel in kernels)
    counted = counted_bytes(case, "fwd_bwd")
    return {"case": str(case), "kernels": kernels, "moved": moved, "counted": counted}


def parsed(text: str) -> list[Result]:
    """The kernels in what ncu prints as CSV, behind lines of its own and in front of their units"""
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith('"ID"')]
    rows = csv.DictReader(lines[heads[0] :]) if heads else ()
    numbers = {"read": READ, "written": WRITTEN, "ns": TIME}
    return [
        {"name": row["Kernel Name"]}
        | {key: float(row[column].replace(",", "")) for key, column in numbers.items()}
        for row in rows
        if row["ID"]
    ]


def told(result: Result) -> str:
    """One line about what :func:`count` returned."""
    share = result["moved"] / result["counted"]
    each = ", ".join(
        f"{kernel['name']} {kernel['read'] / 1e6:.1f} + {kernel['written'] / 1e6:.1f} MB"
        for kernel in result["kernels"]
    )
    return f"{result['case']}: {share:.2f} times the counted bytes; read + written: {each}"


def main(argv: Sequence[str]) -> None:
    (case,) = (case for case in CASES if str(case) == argv[0])
    run = Run(case, "triton").body("fwd_bwd")
    run()  # compiled before it is counted
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    run()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    main(sys.argv[1:])
