"""Several processes that train together: img/s, efficiency, and the time spent on messages.

    pytest bench/bench_scale.py --benchmark-only

Every process takes one image of each domain per step, on a GPU of its own or on one core, so that N
of them train with a batch of N. ``efficiency`` is img/s over N times the img/s of one process;
``waited`` the share of a step that the host spends waiting for tensors on their way, of a GPU only
what is not hidden behind its work: there messages are waited for by streams, and the host does not
know (then the efficiency tells).
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import time
from functools import cache
from typing import NamedTuple

import pytest
import torch

from fastcyclegan.config import TrainConfig
from fastcyclegan.device import resolve_device
from fastcyclegan.distributed import Pending
from fastcyclegan.launch import Launch
from fastcyclegan.meeting import joined
from fastcyclegan.steps.assembly import make_networks
from fastcyclegan.steps.cyclegan import STEPS, CycleGAN, Settings

KIND = resolve_device("auto").type
WORLDS = [n for n in (1, 2, 4, 8) if n <= (torch.cuda.device_count() if KIND == "cuda" else 2)]
PIXELS, NGF, NETG = (256, 64, "resnet_9blocks") if KIND == "cuda" else (64, 32, "resnet_6blocks")
WARM_UP, STEPS_TIMED = 3, 10
TIMEOUT = 120.0


class Measured(NamedTuple):
    """Medians over steps, of one process: seconds of a step, and of these in waiting."""

    seconds: float
    waited: float


def _measure(rank: int, world: int, port: int, results: multiprocessing.Queue) -> None:
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if KIND == "cuda" else torch.device("cpu")
    waited = 0.0
    wait = Pending.wait

    def timed_wait(pending: Pending) -> torch.Tensor:
        nonlocal waited
        start = time.perf_counter()
        tensor = wait(pending)
        waited += time.perf_counter() - start
        return tensor

    Pending.wait = timed_wait
    with joined(Launch.of(), TIMEOUT) as ranks:
        networks = make_networks(TrainConfig(netG=NETG, ngf=NGF, ndf=NGF), device)
        dtype = torch.bfloat16 if KIND == "cuda" else torch.float32
        shape = (3, PIXELS, PIXELS)
        model = CycleGAN(networks, Settings(dtype=dtype), shape, shape, ranks)
        x = (torch.rand(1, *shape) * 2 - 1).to(device, dtype, memory_format=torch.channels_last)
        rows = []
        for step in range(WARM_UP + STEPS_TIMED):
            waited, start = 0.0, time.perf_counter()
            number = torch.arange(world, device=device) + step * world
            STEPS["fused"](model, x, x, number).sum().item()
            rows.append((time.perf_counter() - start, waited))
    medians = map(statistics.median, zip(*rows[WARM_UP:], strict=True))
    results.put(Measured(*medians))


@cache
def measured(world: int) -> Measured:
    """The mean over ``world`` processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_measure, args=(rank, world, port, results)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = [results.get() for _ in processes]
    return Measured(*map(statistics.mean, zip(*found, strict=True)))


@pytest.mark.parametrize("world", WORLDS)
def bench_scale(benchmark, world: int) -> None:
    benchmark.group = f"{NETG}, {PIXELS} px, one image of each domain per process, {KIND}"
    benchmark.pedantic(measured, (world,), rounds=1)
    one, many = measured(1), measured(world)
    benchmark.extra_info |= {
        "img_per_s": world / many.seconds,
        "efficiency": one.seconds / many.seconds,
        "waited": many.waited / many.seconds,
    }
