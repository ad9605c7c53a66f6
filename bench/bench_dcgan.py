"""The ladder of one DCGAN step: pytorch/examples' own code, ``reference``, ``fused``, compiled.

64 pixels, width 64, batch 64. The rows are run in turn, round after round, so that a busy moment of
the machine hits all of them; what is recorded is the median over rounds and its ratio to the first
row. Run alone with ``pytest bench/bench_dcgan.py --benchmark-only``; what compiles is marked slow.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from bench.examples import VARIABLE, ExamplesDCGAN, checkout
from fastcyclegan.config import PRESETS, TrainConfig
from fastcyclegan.device import resolve_device
from fastcyclegan.steps.compilation import compile_model
from fastcyclegan.steps.dcgan import DCGAN, STEPS, Settings
from fastcyclegan.steps.dcgan_assembly import make_networks

DEVICE = resolve_device("auto")
BATCH, PIXELS, ROUNDS = 64, 64, 9


@dataclass(frozen=True)
class Row:
    """One way to do the step; ``scope`` is what is compiled."""

    name: str
    impl: str
    dtype: torch.dtype = torch.float32
    scope: str | None = None


ROWS = [
    Row("pytorch/examples fp32 eager", "examples"),
    Row("reference fp32 eager", "reference"),
    Row("fused fp32 eager", "fused"),
    Row("fused bf16 eager", "fused", torch.bfloat16),
]
COMPILED = [*ROWS[:1], ROWS[-1], Row("fused bf16 compiled", "fused", torch.bfloat16, "block")]


def _images(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand((BATCH, 3, PIXELS, PIXELS), generator=generator) * 2 - 1
    return drawn.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def _ours(row: Row) -> Callable[[], torch.Tensor]:
    config = TrainConfig(**PRESETS["dcgan"])
    model = DCGAN(make_networks(config, DEVICE), Settings(dtype=row.dtype))
    if row.scope:
        compile_model(model, row.scope)
    real, number = _images(row.dtype), torch.arange(BATCH, device=DEVICE)

    def step() -> torch.Tensor:
        number.add_(BATCH)
        return STEPS[row.impl](model, real, number)

    return step


def _theirs() -> Callable[[], torch.Tensor]:
    peer, real = ExamplesDCGAN(DEVICE), _images(torch.float32).contiguous()
    return lambda: torch.tensor(list(peer.step(real).values()))


def _wait_for(step: Callable[[], torch.Tensor]) -> None:
    step().sum().item()


def _seconds(step: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    _wait_for(step)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Timed:
    """A step, the median seconds of its interleaved rounds, and those of its first call."""

    step: Callable[[], torch.Tensor]
    seconds: float
    first: float


@cache
def ladder(rows: tuple[Row, ...]) -> dict[str, Timed]:
    """Every row, timed in turn."""
    steps, first, samples = {}, {}, {}
    for row in rows:
        if row.impl == "examples" and checkout() is None:
            continue
        steps[row.name] = _theirs() if row.impl == "examples" else _ours(row)
        first[row.name] = _seconds(steps[row.name])
        samples[row.name] = []
    for _ in range(ROUNDS):
        for name, step in steps.items():
            samples[name].append(_seconds(step))
    return {
        name: Timed(step, statistics.median(samples[name]), first[name])
        for name, step in steps.items()
    }


def _report(benchmark, row: Row, rows: list[Row]) -> None:
    if row.impl == "examples" and checkout() is None:
        pytest.skip(f"{VARIABLE} names no checkout of pytorch/examples")
    table = ladder(tuple(rows))
    timed, base = table[row.name], next(iter(table))
    benchmark.group = f"DCGAN step, {PIXELS} px, batch {BATCH}, {DEVICE}"
    benchmark.extra_info |= {
        "interleaved_median_seconds": timed.seconds,
        "first_call_seconds": timed.first,
        f"speedup_over {base}": table[base].seconds / timed.seconds,
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(_wait_for, args=(timed.step,), rounds=3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def bench_dcgan_step(benchmark, row):
    _report(benchmark, row, ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("row", COMPILED, ids=lambda row: row.name)
def bench_compiled_dcgan_step(benchmark, row):
    _report(benchmark, row, COMPILED)
