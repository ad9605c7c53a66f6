"""The ladder of one DCGAN step: pytorch/examples' own code, ``reference``, ``fused``, compiled.

64 pixels, width 64, batch 64. The rows are run in turn, round after round, so that a busy moment of
the machine hits all of them; what is recorded is the median over rounds and its ratio to the first
row. Run alone with ``pytest bench/bench_dcgan.py --benchmark-only``; what compiles is marked slow.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from bench.examples import VARIABLE, checkout
from bench.step_rows import DEVICE, Begun, Row, Size, Step, begin, set_switches
from fastcyclegan.config import PRESETS

BATCH, ROUNDS = 64, 9
SIZE = Size("64 px", PRESETS["dcgan"])
BF16 = {"precision": "bf16"}
ROWS = [
    Row("pytorch/examples fp32 eager", peer={}, benchmark=True),
    Row("reference fp32 eager", {"impl": "reference"}),
    Row("fused fp32 eager"),
    Row("fused bf16 eager", BF16),
]
COMPILED = [*ROWS[:1], ROWS[-1], Row("fused bf16 compiled", BF16 | {"compile": True})]


def _wait_for(step: Step) -> None:
    step().sum().item()


def _seconds(step: Step) -> float:
    start = time.perf_counter()
    _wait_for(step)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Timed:
    """A step, and the median seconds of its interleaved rounds."""

    begun: Begun
    seconds: float


@cache
def ladder(rows: tuple[Row, ...]) -> dict[str, Timed]:
    """Every row, timed in turn."""
    here = [row for row in rows if row.peer is None or checkout() is not None]
    steps, samples = {row: begin(row, SIZE, BATCH) for row in here}, {row: [] for row in here}
    for _ in range(ROUNDS):
        for row, begun in steps.items():
            set_switches(row)
            samples[row].append(_seconds(begun.step))
    return {row.name: Timed(steps[row], statistics.median(samples[row])) for row in here}


def _report(benchmark, row: Row, rows: list[Row]) -> None:
    if row.peer is not None and checkout() is None:
        pytest.skip(f"{VARIABLE} names no checkout of pytorch/examples")
    table = ladder(tuple(rows))
    timed, base = table[row.name], next(iter(table))
    timed.begun.check(row)
    benchmark.group = f"DCGAN step, {SIZE.name}, batch {BATCH}, {DEVICE}"
    benchmark.extra_info |= {
        "interleaved_median_seconds": timed.seconds,
        "first_call_seconds": timed.begun.seconds,
        f"speedup_over {base}": table[base].seconds / timed.seconds,
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(_wait_for, args=(timed.begun.step,), rounds=3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def bench_dcgan_step(benchmark, row):
    _report(benchmark, row, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("row", COMPILED, ids=lambda row: row.name)
def bench_compiled_dcgan_step(benchmark, row):
    _report(benchmark, row, COMPILED)
