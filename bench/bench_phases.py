"""What marking a step and its phases costs: without a tool, and with --nvtx where none listens.

    pytest bench/bench_phases.py --benchmark-only

``off`` is what a training pays that nobody looks at; above ``MOST_US`` per step it is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.probes.timing import elapsed_ms, spread
from fastcyclegan.config import TrainConfig
from fastcyclegan.profiling import Profiler
from fastcyclegan.steps.phases import PHASES

WAYS = {"off": TrainConfig(), "--nvtx": TrainConfig(nvtx=True)}
CPU, STEPS, MOST_US = torch.device("cpu"), 1000, 5.0


@pytest.mark.parametrize("way", WAYS)
def bench_phases(benchmark: Any, way: str, tmp_path: Path) -> None:
    with Profiler(WAYS[way], CPU, 0, STEPS, tmp_path, print) as profiler:

        def steps() -> None:
            for number in range(STEPS):
                with profiler.step(number):
                    for name in PHASES:
                        with profiler.phase(name):
                            pass

        us = spread([1e3 * ms / STEPS for ms in elapsed_ms(steps, CPU, 22)[2:]])
        assert way != "off" or us["median"] < MOST_US, f"{us} us per step: nothing is recorded"
        benchmark.group = "phases of a step"
        benchmark.extra_info |= {"us_per_step": us}
        benchmark.pedantic(steps, rounds=20, warmup_rounds=2)
