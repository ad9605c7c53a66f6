"""The named phases of a step, as a profiler shows them: NVTX ranges, spans of a torch trace.

A step marks its phases with ``with model.phase("G_forward"):``, always around what torch.compile or
a CUDA graph runs, never inside of it. Without a profiler ``model.phase`` is :func:`unmarked`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import nvtx
import torch

STEP = "step"
# Inside STEP instead of its phases, where it is one CUDA graph.
REPLAY = "replay"
# What lies inside STEP, in the order of the fused step.
PHASES = ("data", "G_forward", "pool", "D_forward", "D_backward", "G_backward", "G_opt", "D_opt")

Phase = Callable[[str], AbstractContextManager]

_NOTHING = nullcontext()


def unmarked(name: str) -> AbstractContextManager:
    """Marks nothing."""
    return _NOTHING


def nvtx_range(name: str) -> AbstractContextManager:
    """An NVTX range of the default domain, on the calling thread."""
    return nvtx.annotate(name)


def trace_span(name: str) -> AbstractContextManager:
    """A span of the trace that torch.profiler records."""
    return torch.profiler.record_function(name)


def nvtx_is_read() -> bool:
    """Whether a tool that reads NVTX ranges, such as nsys or ncu, is attached to this process."""
    return isinstance(nvtx.get_domain(), nvtx.Domain)
