"""Ways to do one training step, as rows of a ladder: ours by their options, the peers by theirs.

A row is one line of a table; what it measures is built as the train command builds it.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch

from bench import examples, jz
from bench.ceilings import lack_of_compiler
from bench.our_step import LARGEST_ERROR, LARGEST_GRADIENT_ERROR, OurStep, Seen, Step
from bench.probes.peer import PeerStep
from bench.probes.timing import free_memory
from fastcyclegan.config import TrainConfig
from fastcyclegan.device import resolve_device, resolve_precision
from fastcyclegan.feed import Feed
from fastcyclegan.steps.capture import WARM_UP, CapturedStep, CudaGraphs
from fastcyclegan.steps.compilation import compile_model
from fastcyclegan.steps.cost import step_cost
from fastcyclegan.systems import SYSTEMS, System, make_system

DEVICE = resolve_device("auto")
IMAGES = 16
# A captured step is judged by its second replay, what else is replayed by one that is as late.
REPLAYED = WARM_UP + 2


@dataclass(frozen=True, eq=False)
class Row:
    """One way to do the step.

    Args:
        name: of the row.
        options: of ``TrainConfig``, beyond those of the size; what is compiled and captured too.
        kernels: False takes the references in their place on a GPU too.
        autocast: the step runs under torch.autocast in bf16, its weights stay in fp32.
        mode: of torch.compile, for each network as a whole; None leaves that out.
        drawn: each step draws its images, as in a training; else all take the same ones.
        benchmark: cudnn.benchmark, which the peers set and the train command does not.
        peer: arguments of :class:`bench.probes.peer.PeerStep`, or none for the DCGAN of
            pytorch/examples; None: the row is ours.
        batches: the only batch sizes that it is measured at; all, where there are none.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kernels: bool = True
    autocast: bool = False
    mode: str | None = None
    drawn: bool = False
    benchmark: bool = False
    peer: Mapping[str, Any] | None = None
    batches: tuple[int, ...] = ()

    @property
    def precision(self) -> str:
        """What its losses are as exact as."""
        return "bf16" if self.autocast else self.options.get("precision", "fp32")

    @property
    def compiles(self) -> bool:
        """Whether its first step waits for a compiler."""
        return bool(self.mode or self.options.get("compile"))

    @property
    def has_kernels(self) -> bool:
        """Whether it runs kernels on a GPU."""
        ours = self.peer is None and self.options.get("impl") != "reference"
        return ours and self.kernels and DEVICE.type == "cuda"

    @property
    def calls(self) -> int:
        """How many of its first steps are taken to judge it."""
        return REPLAYED if self.mode or self.options.get("cuda_graph") == "on" else 1


@dataclass(frozen=True, eq=False)
class Size:
    """Networks and images of one ladder: options of ``TrainConfig`` that all its rows share."""

    name: str
    options: Mapping[str, Any]

    def config(self, row: Row, batch: int) -> TrainConfig:
        """The options of ``row`` at this size."""
        chosen = {"precision": "fp32", **self.options, **row.options, "batch_size": batch}
        return TrainConfig(**chosen)


def build(row: Row, size: Size, batch: int = 1) -> Step:
    """The step of ``row``, from fresh weights; it returns losses, on the device."""
    set_switches(row)
    return _ours(row, size, batch) if row.peer is None else _theirs(row, size, batch)


def set_switches(row: Row) -> None:
    """Torch's own switches as the row has them; they are one set for the whole process."""
    if row.peer is None:
        resolve_precision(row.options.get("precision", "fp32"), DEVICE)
    else:  # the peers leave these as torch has them
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = row.benchmark


def missing_peer(row: Row, size: Size) -> str | None:
    """Why ``row`` cannot be measured here: its peer's checkout is not there. None where it can."""
    if row.peer is None:
        return None
    if size.config(row, 1).model == "dcgan":
        name, found = examples.VARIABLE, examples.checkout()
    else:
        name, found = jz.VARIABLE, jz.checkout()
    return None if found else f"{name} names no checkout of the peer"


def missing(row: Row, size: Size) -> str | None:
    """Why ``row`` cannot be measured here: no peer, or no compiler. None where it can."""
    needs_compiler = row.compiles or row.has_kernels
    return missing_peer(row, size) or (lack_of_compiler(DEVICE) if needs_compiler else None)


def expected(row: Row, size: Size, batch: int = 1) -> Seen:
    """What ``row`` should show, by the reference in fp32."""
    weights = {name: x for name, x in row.options.items() if name.startswith("lambda_")}
    return _expected(size, batch, tuple(weights.items()), row.drawn, row.calls)


@cache
def _expected(
    size: Size, batch: int, weights: tuple[tuple[str, Any], ...], drawn: bool, calls: int
) -> Seen:
    return build(Row("", {"impl": "reference", **dict(weights)}, drawn=drawn), size, batch).seen(
        calls
    )


@cache
def flops(size: Size, batch: int = 1) -> int:
    """Of one step, without gradients that nobody needs."""
    system = _system(Row(""), size, batch)
    shapes = [tuple(images.shape) for images in system.sampler.batch(0)]
    return step_cost(system.model, system.step, shapes, torch.float32).flops


@dataclass
class Begun:
    """A step, and what its first call has shown.

    Attributes:
        losses: of the last call by which it is judged, on the CPU.
        seconds: that the first one took, with all compilation.
        error: of the losses against the reference in fp32, relative to the largest of them; None of
            a peer, whose weights are its own.
        gradient_error: of the gradients of weights, the largest, in units of their norms.
        held: bytes that were allocated on the GPU before.
    """

    step: Step
    losses: torch.Tensor
    seconds: float
    error: float | None
    gradient_error: float | None
    held: int

    @property
    def peak(self) -> int | None:
        """Bytes on a GPU that it has taken at most, until now; None on a CPU."""
        return torch.cuda.max_memory_allocated() - self.held if DEVICE.type == "cuda" else None

    def check(self, row: Row) -> None:
        """Raise AssertionError if it is off so far that figures of it would mean nothing."""
        if self.error is None:
            return
        right = self.error <= LARGEST_ERROR[row.precision]
        assert right, f"the losses are off by {self.error:g}: nothing is recorded"
        right = self.gradient_error <= LARGEST_GRADIENT_ERROR[row.precision]
        assert right, f"the gradients are off by {self.gradient_error:g}: nothing is recorded"


def begin(row: Row, size: Size, batch: int = 1) -> Begun:
    """The step of ``row``, called as often as it takes to judge it."""
    truth = expected(row, size, batch) if row.peer is None else None
    gc.collect()
    free_memory(DEVICE)
    held = 0
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    step = build(row, size, batch)
    if truth is None:
        start = time.perf_counter()
        losses = step().detach().float().cpu()
        return Begun(step, losses, time.perf_counter() - start, None, None, held)
    seen = step.seen(row.calls)
    error = float((seen.losses - truth.losses).abs().max() / truth.losses.abs().max())
    pairs = zip(seen.gradients, truth.gradients, strict=True)
    # a NaN is the largest of a tensor, which it need not be of a list
    of_gradients = torch.stack([(found - true).norm() / true.norm() for found, true in pairs])
    return Begun(step, seen.losses, seen.seconds, error, float(of_gradients.max()), held)


def _system(row: Row, size: Size, batch: int) -> System:
    """As the train command makes it, on a few toy images."""
    config = size.config(row, batch)
    precision = resolve_precision(config.precision, DEVICE)
    with TemporaryDirectory() as scratch:
        few = SYSTEMS[config.model].few(config, max(IMAGES, batch), Path(scratch))
        return make_system(few, DEVICE, precision, lambda line: None)


def _ours(row: Row, size: Size, batch: int) -> OurStep:
    system = _system(row, size, batch)
    model, function, config = system.model, system.step, system.config
    for net in () if row.kernels else model.networks.values():
        net.impl = "ref"
    for net in model.networks.values() if row.mode else ():
        net.compile(mode=row.mode, dynamic=False)
    if config.compile:
        compile_model(model, config.compile_scope)
    graphs = CudaGraphs(DEVICE) if config.cuda_graph == "on" else None
    if row.drawn:
        return OurStep(_fed(system, graphs), model, config.lr)
    if graphs:
        function = CapturedStep(function, _refuse_warnings, graphs)
    fixed, number = system.sampler.batch(0), torch.arange(batch, device=DEVICE)

    def step() -> torch.Tensor:
        if row.mode:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(DEVICE.type, torch.bfloat16) if row.autocast else nullcontext():
            losses = function(model, *fixed, number)
        number.add_(batch)
        return losses

    return OurStep(step, model, config.lr)


def _fed(system: System, graphs: CudaGraphs | None) -> Step:
    """As a training takes its steps: one graph draws the images as well."""
    never_skipped = SimpleNamespace(offset=0, batch=system.sampler.batch)
    feed, done = Feed(system, never_skipped, graphs, _refuse_warnings), itertools.count()
    feed.go_to(0)
    return lambda: feed(next(done))


def _refuse_warnings(line: str) -> None:
    """A row that is called captured must be."""
    if line.startswith("warning"):
        raise RuntimeError(line)


def _theirs(row: Row, size: Size, batch: int) -> Step:
    """On a CPU in a process of its own: ours tells the C library to keep freed memory."""
    config = size.config(row, batch)
    make = _dcgan_peer if config.model == "dcgan" else _cyclegan_peer
    shown = {"side": config.crop_size, "ngf": config.ngf, "ndf": config.ndf, **row.peer}
    if make is _cyclegan_peer:
        shown["netG"] = config.netG
    begun = partial(make, batch, **shown)
    return OwnProcess(begun) if DEVICE.type == "cpu" else begun()


def _dcgan_peer(batch: int, side: int, **options: Any) -> Step:
    peer = examples.ExamplesDCGAN(DEVICE, **options)
    draw = torch.Generator().manual_seed(0)
    real = (torch.rand((batch, 3, side, side), generator=draw) * 2 - 1).to(DEVICE)
    return lambda: torch.tensor(list(peer.step(real).values()))


def _cyclegan_peer(batch: int, side: int, **options: Any) -> Step:
    step = PeerStep(batch, DEVICE, side, **options)

    def losses() -> torch.Tensor:
        step()
        return step.model.loss_G

    return losses


class OwnProcess:
    """The step that ``make`` returns, in a process of its own; losses come back on the CPU."""

    def __init__(self, make: Callable[[], Step]) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._here, there = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(there, make), daemon=True)
        self._process.start()
        there.close()
        self._here.recv()

    def __call__(self) -> torch.Tensor:
        self._here.send(None)
        return torch.tensor(self._here.recv())


def _serve(connection: Connection, make: Callable[[], Step]) -> None:
    step = make()
    connection.send("ready")
    with contextlib.suppress(EOFError):
        while True:
            connection.recv()
            connection.send(step().tolist())
