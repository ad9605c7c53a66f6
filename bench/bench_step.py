"""The ladder of one CycleGAN step: junyanz's own code, ``reference``, ``fused``, compiled.

The rows of a size are run in turn, round after round, so that a busy moment of the machine hits all
of them; what is recorded is the median over rounds and its ratio to the first row. Run alone with
``pytest bench/bench_step.py --benchmark-only``; the large size is marked slow (``-m slow``).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch

from bench.jz import VARIABLE, OwnProcess, checkout, step_of
from bench.op_bench import matmul_tflop_per_s
from fastcyclegan.config import TrainConfig
from fastcyclegan.device import resolve_device
from fastcyclegan.memory import keep_freed_memory
from fastcyclegan.steps.assembly import make_networks
from fastcyclegan.steps.capture import CapturedStep, CudaGraphs
from fastcyclegan.steps.compilation import compile_model
from fastcyclegan.steps.cost import step_cost
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings

DEVICE = resolve_device("auto")


@dataclass(frozen=True)
class Row:
    """One way to do the step; ``scope`` is what is compiled, ``captured`` as a CUDA graph."""

    name: str
    impl: str
    dtype: torch.dtype = torch.float32
    scope: str | None = None
    captured: bool = False


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
if DEVICE.type == "cuda":
    ROWS.append(Row("fused bf16 compiled, block, captured", "fused", torch.bfloat16, "block", True))
# Of the losses of a first step against the reference in fp32, relative to the largest of them.
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
SMALL = Size("64 px, ngf 32, resnet_6blocks", 64, 32, "resnet_6blocks", 15)
LARGE = Size("128 px, ngf 64, resnet_9blocks", 128, 64, "resnet_9blocks", 5)


def _images(size: Size, dtype: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, size.pixels, size.pixels)
    drawn = (torch.rand(shape, generator=generator) * 2 - 1 for _ in range(2))
    return [x.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last) for x in drawn]


def _model(row: Row, size: Size) -> CycleGAN:
    config = TrainConfig(netG=size.netG, ngf=size.ngf, ndf=size.ngf, impl=row.impl)
    shape = (3, size.pixels, size.pixels)
    return CycleGAN(make_networks(config, DEVICE), Settings(dtype=row.dtype), shape, shape)


def _ours(row: Row, size: Size) -> Callable[[], torch.Tensor]:
    model, function = _model(row, size), STEPS[row.impl]
    if row.scope:
        compile_model(model, row.scope)
    if row.captured:
        function = CapturedStep(function, print, CudaGraphs(DEVICE))
    real_A, real_B = _images(size, row.dtype)
    number = torch.zeros(1, dtype=torch.int64, device=DEVICE)

    def step() -> torch.Tensor:
        number.add_(1)
        return function(model, real_A, real_B, number)

    return step


@cache
def flops(size: Size) -> int:
    """Of one step."""
    row = Row("", "fused")
    shapes = [(1, 3, size.pixels, size.pixels)] * 2
    return step_cost(_model(row, size), STEPS["fused"], shapes, row.dtype).flops


@cache
def expected_losses(size: Size) -> torch.Tensor:
    """Of the first step, by the reference in fp32."""
    return _ours(Row("", "reference"), size)().cpu()


def _theirs(size: Size) -> Callable[[], torch.Tensor]:
    images = (x.contiguous() for x in _images(size, torch.float32))
    networks = {"netG": size.netG, "ngf": size.ngf, "ndf": size.ngf}
    return (OwnProcess if DEVICE.type == "cpu" else step_of)(DEVICE, *images, **networks)


def _wait_for(step: Callable[[], torch.Tensor]) -> None:
    step().sum().item()


def _seconds(step: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    _wait_for(step)
    return time.perf_counter() - start


@dataclass
class Timed:
    """A step: the seconds of its first call and of its interleaved rounds, how far it is off.

    ``error``: of the losses, None for the peer, whose weights are its own. ``peak``: bytes on a
    GPU that the first call took.
    """

    step: Callable[[], torch.Tensor]
    first: float
    error: float | None
    peak: int
    samples: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return statistics.median(self.samples)


def _begun(row: Row, size: Size) -> Timed:
    held = _reset_peak()
    step = _theirs(size) if row.impl == "jz" else _ours(row, size)
    start = time.perf_counter()
    losses = step().float().cpu()
    first, error = time.perf_counter() - start, None
    if row.impl != "jz":
        truth = expected_losses(size)
        error = float((losses - truth).abs().max() / truth.abs().max())
    cuda = DEVICE.type == "cuda"
    return Timed(step, first, error, torch.cuda.max_memory_allocated() - held if cuda else 0)


def _reset_peak() -> int:
    """Bytes that are allocated on the GPU now, from which its peak is counted anew."""
    if DEVICE.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


@cache
def ladder(size: Size) -> dict[str, Timed]:
    """Every row of a size, timed in turn."""
    if DEVICE.type == "cpu":
        keep_freed_memory()
    rows = [row for row in ROWS if row.impl != "jz" or checkout() is not None]
    begun = {row.name: _begun(row, size) for row in rows}
    for _ in range(size.rounds):
        for timed in begun.values():
            timed.samples.append(_seconds(timed.step))
    return begun


def _report(benchmark, row: Row, size: Size) -> None:
    if row.impl == "jz" and checkout() is None:
        pytest.skip(f"{VARIABLE} names no checkout of junyanz's code")
    table = ladder(size)
    timed, base = table[row.name], next(iter(table))
    wrong = timed.error is not None and not timed.error <= LARGEST_ERROR[row.dtype]
    assert not wrong, f"the losses are off by {timed.error:g}: nothing is recorded"
    tflop_per_s = flops(size) / timed.seconds / 1e12
    benchmark.group = f"step, {size.name}, {DEVICE}"
    benchmark.extra_info |= {
        "interleaved_median_seconds": timed.seconds,
        "first_call_seconds": timed.first,
        f"speedup_over {base}": table[base].seconds / timed.seconds,
        "TFLOP_per_s": tflop_per_s,
        "of_matmul": tflop_per_s / matmul_tflop_per_s(row.dtype),
        "max_error": timed.error,
        "peak_MiB": timed.peak / 2**20 if timed.peak else None,
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
