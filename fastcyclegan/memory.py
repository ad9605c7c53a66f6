"""How much memory a device has left, and how much of a CPU's this process holds."""

import ctypes
import importlib
import os
from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
# From glibc's malloc.h. The threshold is the greatest that it takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_NEVER, _MMAP_THRESHOLD = -1, 32 * 2**20
# Beside torch's modules: code and tables of its libraries that come in with the first steps, and
# what compiled networks and their making leave. Measured: 30 to 60 MiB, 37 to 53 MiB.
_STEPS, _COMPILED = 45 * 2**20, 45 * 2**20


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still take on ``device``.

    On a CPU what the kernel calls available, or less where a control group allows less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
    free = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        limit, used = ((_CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return free if limit.strip() == "max" else min(free, max(0, int(limit) - int(used)))


def process_bytes(compiles: bool = False) -> int:
    """Bytes of main memory that this process holds, with all that a training brings in."""
    importlib.import_module("torch._dynamo")  # which the first step of an optimiser loads
    if compiles:
        importlib.import_module("torch._inductor.compile_fx")
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") + _STEPS + compiles * _COMPILED


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next allocation; whether it can do that.

    A step on a CPU frees at its end what the next one allocates again. By default glibc gives it
    back to the kernel in between, which has to fill every page with zeros when it is touched anew.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
