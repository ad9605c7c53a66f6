"""The ladder of one CycleGAN step: junyanz's own code, ``reference``, ``fused``, compiled.

The rows of a size are run in turn, round after round, so that a busy moment of the machine hits all
of them; what is recorded is the median over rounds and its ratio to the first row. Run alone with
``pytest bench/bench_step.py --benchmark-only``; the large size is marked slow (``-m slow``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch

from bench.jz import VARIABLE, checkout, cyclegan_model
from fastcyclegan.config import TrainConfig
from fastcyclegan.device import resolve_device
from fastcyclegan.steps.assembly import make_networks
from fastcyclegan.steps.compilation import compile_model
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings

DEVICE = resolve_device("auto")


@dataclass(frozen=True)
class Row:
    """One way to do the step; ``scope`` is what is compiled."""

    name: str
    impl: str
    dtype: torch.dtype = torch.float32
    scope: str | None = None


@dataclass(frozen=True)
class Size:
    """Networks and images of one table."""

    name: str
    pixels: int
    ngf: int
    netG: str
    rounds: int


ROWS = [
    Row("junyanz fp32 eager", "jz"),
    Row("reference fp32 eager", "reference"),
    Row("fused fp32 eager", "fused"),
    Row("fused bf16 eager", "fused", torch.bfloat16),
    Row("fused fp32 compiled, block", "fused", torch.float32, "block"),
    Row("fused bf16 compiled, block", "fused", torch.bfloat16, "block"),
    Row("fused bf16 compiled, step", "fused", torch.bfloat16, "step"),
]
SMALL = Size("64 px, ngf 32, resnet_6blocks", 64, 32, "resnet_6blocks", 15)
LARGE = Size("128 px, ngf 64, resnet_9blocks", 128, 64, "resnet_9blocks", 5)


def _images(size: Size, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, size.pixels, size.pixels)
    drawn = (torch.rand(shape, generator=generator) * 2 - 1 for _ in range(2))
    return [x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last) for x in drawn]


def _ours(row: Row, size: Size) -> Callable[[], torch.Tensor]:
    config = TrainConfig(netG=size.netG, ngf=size.ngf, ndf=size.ngf, impl=row.impl)
    shape = (3, size.pixels, size.pixels)
    model = CycleGAN(make_networks(config, DEVICE), Settings(dtype=row.dtype), shape, shape)
    if row.scope:
        compile_model(model, row.scope)
    real_A, real_B = _images(size, row.dtype)
    number = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def step() -> torch.Tensor:
        number.add_(1)
        return STEPS[row.impl](model, real_A, real_B, number)

    return step


def _theirs(size: Size) -> Callable[[], torch.Tensor]:
    model = cyclegan_model(DEVICE, netG=size.netG, ngf=size.ngf, ndf=size.ngf)
    A, B = (x.contiguous() for x in _images(size, torch.float32))
    model.set_input({"A": A, "B": B, "A_paths": [], "B_paths": []})

    def step() -> torch.Tensor:
        model.optimize_parameters()
        return model.loss_G

    return step


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
def ladder(size: Size) -> dict[str, Timed]:
    """Every row of a size, timed in turn."""
    steps, first, samples = {}, {}, {}
    for row in ROWS:
        if row.impl == "jz" and checkout() is None:
            continue
        steps[row.name] = _theirs(size) if row.impl == "jz" else _ours(row, size)
        first[row.name] = _seconds(steps[row.name])
        samples[row.name] = []
    for _ in range(size.rounds):
        for name, step in steps.items():
            samples[name].append(_seconds(step))
    return {
        name: Timed(step, statistics.median(samples[name]), first[name])
        for name, step in steps.items()
    }


def _report(benchmark, row: Row, size: Size) -> None:
    if row.impl == "jz" and checkout() is None:
        pytest.skip(f"{VARIABLE} names no checkout of junyanz's code")
    table = ladder(size)
    timed, base = table[row.name], next(iter(table))
    benchmark.group = f"step, {size.name}, {DEVICE}"
    benchmark.extra_info |= {
        "interleaved_median_seconds": timed.seconds,
        "first_call_seconds": timed.first,
        f"speedup_over {base}": table[base].seconds / timed.seconds,
        "threads": torch.get_num_threads(),
    }
    benchmark.pedantic(_wait_for, args=(timed.step,), rounds=3)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def bench_small_step(benchmark, row):
    _report(benchmark, row, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def bench_large_step(benchmark, row):
    _report(benchmark, row, LARGE)
