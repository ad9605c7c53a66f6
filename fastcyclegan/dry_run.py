"""``train --dry_run``: what a training would take on this device, without writing anything."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from torch.nn import functional as F

from fastcyclegan.command import DONE
from fastcyclegan.config import TrainConfig
from fastcyclegan.data.sampler import lies_on
from fastcyclegan.data.survey import Survey
from fastcyclegan.device import resolve_precision
from fastcyclegan.memory import free_bytes, process_bytes
from fastcyclegan.preparation import check_device, check_steps
from fastcyclegan.steps.cost import Cost, step_cost
from fastcyclegan.steps.schedule import Schedule
from fastcyclegan.systems import SYSTEMS, System, make_system

# Images that are decoded, to draw batches from; the others are counted by their headers.
DECODED = 8
# What the tensors alive take with allocator and workspaces of convolutions, measured on a CPU at
# 64 and 128 px, fp32 and bf16: 1.18 to 1.25.
CPU_OVERHEAD = 1.2
MEASURED_STEPS, MEASURED_SECONDS = 3, 4.0
# What a step reaches of the speed of one of its convolutions: on two CPU cores at 128 px 0.5 in
# bf16, 0.7 in fp32.
EFFICIENCY = 0.5


@dataclass(frozen=True)
class Plan:
    """What a training would take.

    Attributes:
        title: what is trained, how and where.
        survey: of the images.
        steps, batch_size: of the whole training.
        cost: of one step.
        process: bytes of main memory that the interpreter and its libraries take; 0 on a GPU.
        overhead: what takes memory beside the tensors alive, as a factor.
        free: bytes that are free on the device.
        images: bytes that decoded images take there.
        seconds: of one step.
        source: how these were found.
    """

    title: str
    survey: Survey
    steps: int
    batch_size: int
    cost: Cost
    process: int
    overhead: float
    free: int
    images: int
    seconds: float = 0.0
    source: str = ""

    @property
    def bytes(self) -> int:
        """Memory in all, at its peak."""
        return self.process + self._fixed + int(self.overhead * self.cost.live)

    @property
    def checkpoint(self) -> int:
        """What a checkpoint takes while it is written: a copy, and all its files as bytes.

        The bytes of the largest are there twice while they are put together. 0 on a GPU, as it lies
        in main memory.
        """
        held = self.cost.held
        state = held["Adam's moments"] + held["image pools"]
        return 2 * held["parameters"] + 3 * state if self.process else 0

    @property
    def _fixed(self) -> int:
        return sum(self.cost.held.values()) + self.images + self.checkpoint

    @property
    def fits(self) -> bool:
        """Whether that is there; the process is already."""
        return self.bytes - self.process <= self.free

    @property
    def largest_batch(self) -> int:
        """The largest batch that fits, 0 if none does."""
        per_image = self.overhead * self.cost.live / self.batch_size
        return max(0, int((self.free - self._fixed) / per_image))

    def lines(self) -> Iterator[str]:
        """The plan for people."""
        yield f"dry run, nothing is written: {self.title}"
        yield from self.survey.lines()
        yield f"compute: {_flops(self.cost.flops)} per step of batch {self.batch_size}"
        held = {name: size for name, size in self.cost.held.items() if size}
        parts = {"python and torch": self.process} if self.process else {}
        parts |= held | ({"decoded images": self.images} if self.images else {})
        parts |= {"a checkpoint being written": self.checkpoint} if self.checkpoint else {}
        parts |= {"activations": int(self.overhead * self.cost.live)}
        told = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
        yield f"memory: {_size(self.bytes)} at its peak: {told}"
        if not self.images:
            yield f"        decoded images stay in main memory: {_size(self.survey.decoded_bytes)}"
        verdict = f"fits into the {_size(self.free)} that are free"
        if not self.fits:
            verdict = f"does not fit: {_size(self.free)} are free"
        yield f"fit: {verdict}; the largest batch that does is about {self.largest_batch}"
        total = _duration(self.steps * self.seconds)
        yield f"time: {self.seconds:.3g} s per step, {self.source}"
        yield f"      {total} for all {self.steps} steps, without previews and saving"


def dry_run(config: TrainConfig, device: torch.device, console: Console) -> int:
    """Print what the training that ``config`` describes would take; returns the exit code.

    Raises:
        UserError: something named by the options cannot be used.
    """
    for line in make_plan(config, device).lines():
        console.print(line, soft_wrap=True)
    return DONE


def make_plan(config: TrainConfig, device: torch.device) -> Plan:
    """Look at the images' headers and at one step; run a few where that takes seconds.

    Raises:
        UserError: something named by the options cannot be used.
    """
    check_device(config, device)
    on_cpu = device.type == "cpu"
    process = process_bytes(config.compile) if on_cpu else 0
    free = free_bytes(device)
    precision = resolve_precision(config.precision, device)
    survey = SYSTEMS[config.model].survey(config)
    images = survey.decoded_bytes
    if not (on_cpu or lies_on(device, config.data_on, images)):
        images = 0
    with TemporaryDirectory() as scratch:
        few = SYSTEMS[config.model].few(config, DECODED, Path(scratch))
        system = make_system(few, device, precision, lambda text: None)
    schedule = Schedule.of(config, survey.images_per_epoch)
    check_steps(config, system, schedule)
    shapes = [tuple(images.shape) for images in system.sampler.batch(0)]
    cost = step_cost(system.model, system.step, shapes, precision.dtype)
    plan = Plan(
        f"{system.title}, {precision.name} on {device}",
        survey,
        schedule.total_steps,
        config.batch_size,
        cost,
        process,
        CPU_OVERHEAD if on_cpu else 1.0,
        free,
        images,
    )
    seconds, source = _speed(system, plan)
    return replace(plan, seconds=seconds, source=source)


def _speed(system: System, plan: Plan) -> tuple[float, str]:
    """Seconds per step, and how they were found."""
    rate = _convolution_rate(system.device, system.precision.dtype)
    expected = plan.cost.flops / (EFFICIENCY * rate)
    if plan.fits and 2 * expected < MEASURED_SECONDS:
        return _measured_speed(system)
    why = "too slow to be measured here" if plan.fits else "as it does not fit"
    return expected, (f"an estimate, {why}: half the speed of one convolution, {_flops(rate)}/s")


def _measured_speed(system: System) -> tuple[float, str]:
    step = system.step
    number = torch.arange(system.config.batch_size, device=system.device)
    samples: list[float] = []
    begin = time.perf_counter()
    for index in range(1 + MEASURED_STEPS):
        start = time.perf_counter()
        step(system.model, *system.sampler.batch(index), number).sum().item()
        samples.append(time.perf_counter() - start)
        if index and time.perf_counter() - begin > MEASURED_SECONDS:
            break
    how = f"measured over {len(samples) - 1} steps"
    if system.config.compile:
        how += " without --compile, which is faster"
    return statistics.median(samples[1:]), how


def _convolution_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a 3x3 convolution of 256 channels at 64 x 64, forward."""
    layout = {"memory_format": torch.channels_last}
    x = torch.ones(1, 256, 64, 64, device=device, dtype=dtype).contiguous(**layout)
    weight = torch.ones(256, 256, 3, 3, device=device, dtype=dtype).contiguous(**layout)
    samples = []
    for _ in range(4):
        start = time.perf_counter()
        F.conv2d(x, weight, padding=1)[0, 0, 0, 0].item()
        samples.append(time.perf_counter() - start)
    return 2 * 9 * 256 * x.numel() / min(samples)


def _flops(count: float) -> str:
    return f"{count / 1e12:.4g} TFLOP" if count >= 1e11 else f"{count / 1e9:.4g} GFLOP"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
