"""What this machine reaches at most: the ceilings that figures of the same run are set beside."""

from __future__ import annotations

import statistics
from functools import cache

import torch

from bench.probes.timing import elapsed_ms
from fastcyclegan.steps.compilation import missing_compiler

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def lack_of_compiler(device: torch.device = DEVICE) -> str | None:
    """Why nothing can be compiled for the device, kernels on a GPU among it; None if it can."""
    return missing_compiler(device)


@cache
def copy_gb_per_s(device: torch.device = DEVICE) -> float:
    """GB/s of a copy on the device, read and written bytes counted."""
    bytes_each = 2**32 if device.type == "cuda" else 2**26
    source = torch.empty(bytes_each // 4, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    # Not from a graph: there a copy is a node of its own kind, and slower.
    times = elapsed_ms(lambda: target.copy_(source), source.device, 25)[5:]
    return round(2 * bytes_each / statistics.median(times) / 1e6, 1)


@cache
def matmul_tflop_per_s(dtype: torch.dtype, device: torch.device = DEVICE) -> float:
    """TFLOP/s of a square matrix product on the device."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    times = elapsed_ms(lambda: torch.mm(a, b, out=out), device, 25)[5:]
    return round(2 * side**3 / statistics.median(times) / 1e9, 4)
