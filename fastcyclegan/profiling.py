"""Profiling a training: its ranges, and the window of steps that a profiler looks at."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from fastcyclegan.config import TrainConfig, profile_window
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.steps.phases import STEP, Phase, nvtx_is_read, nvtx_range, trace_span, unmarked

# Of a trace whose steps are not named: late enough for caches and autotuning to be warm.
FIRST_TRACED, TRACED_STEPS = 10, 5


def check_profiling(config: TrainConfig, device: torch.device, total: int) -> None:
    """Raise UserError if the steps to profile are not among ``total``, or ``device`` lacks a tool.

    ``profile_steps`` without ``profile`` calls cudaProfilerApi, which only a GPU has.
    """
    if config.profile_steps is None:
        return
    flag = f"--profile_steps {config.profile_steps}"
    if config.profile is None and device.type != "cuda":
        raise UserError(
            f"{flag} brackets steps for Nsight, which needs a GPU; add --profile torch to record a "
            "trace of them here"
        )
    if profile_window(config.profile_steps)[1] > total:
        raise UserError(f"{flag}: the training ends after step {total - 1}")


class Profiler:
    """Marks the steps of a training, and records or brackets the window that its options name.

    Use it as a context manager around the steps; a window that an end of the training cuts short is
    kept as far as it came.

    Args:
        config: ``nvtx``, ``profile`` and ``profile_steps`` are heeded.
        device: of the training.
        first, total: the steps to come are ``first`` to ``total`` - 1.
        folder: where traces are written.
        say: is told of each trace in one line.

    Attributes:
        phase: marks the phases of a step.

    Raises:
        UserError: the window begins before ``first``.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        first: int,
        total: int,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self.device, self.folder, self.say = device, folder, say
        self.phase = _phase(config)
        self._begin, self._end = _window(config, first, total)
        self._last = first
        self._trace = _torch_profile(device) if config.profile else None
        self._is_open = False
        self._backward_here = ExitStack()

    def __enter__(self) -> Self:
        if self.phase is not unmarked:
            # A range belongs to its thread, so backward must launch its kernels from this one.
            self._backward_here.enter_context(torch.autograd.set_multithreading_enabled(False))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._backward_here.close()
        if self._is_open:
            self._close()

    def step(self, number: int) -> AbstractContextManager:
        """The range around step ``number``; the window opens or closes in front of it."""
        if number == self._begin and not self._is_open:
            self._open()
        elif number == self._end and self._is_open:
            self._close()
        self._last = number
        return self.phase(STEP)

    def _open(self) -> None:
        self._synchronise()
        self._is_open = True
        if self._trace:
            self._trace.start()
        else:
            torch.cuda.cudart().cudaProfilerStart()

    def _close(self) -> None:
        self._synchronise()
        self._is_open = False
        if not self._trace:
            torch.cuda.cudart().cudaProfilerStop()
            return
        self._trace.stop()
        path = self.folder / f"steps-{self._begin:08d}-{self._last:08d}.json.gz"
        try:
            self.folder.mkdir(exist_ok=True)
            self._trace.export_chrome_trace(str(path))
        except OSError as problem:
            self.say(f"warning: {printable(path)}: the trace was not written ({problem.strerror})")
            return
        self.say(f"trace of steps {self._begin} to {self._last}: {printable(path)}")

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _phase(config: TrainConfig) -> Phase:
    if config.profile:
        return trace_span
    return nvtx_range if config.nvtx or nvtx_is_read() else unmarked


def _window(config: TrainConfig, first: int, total: int) -> tuple[int, int]:
    """The first step of the window and the one behind it; two negative numbers for none."""
    if config.profile_steps is not None:
        begin, end = profile_window(config.profile_steps)
        if begin < first:
            raise UserError(
                f"--profile_steps {config.profile_steps}: the training continues at step {first}"
            )
        return begin, end
    if config.profile is None:
        return -1, -1
    begin = min(first + FIRST_TRACED, total - 1)
    return begin, min(begin + TRACED_STEPS, total)


def _torch_profile(device: torch.device) -> torch.profiler.profile:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return torch.profiler.profile(activities=activities)
