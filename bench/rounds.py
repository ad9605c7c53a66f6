"""Rounds of calls that are long enough to be timed with a clock."""

from __future__ import annotations

import time
from math import ceil

import torch

from bench.ceilings import DEVICE
from bench.probes.timing import Body

# A round of less would measure the clock and the synchronisation.
ROUND_US = 5000
# Above it, so that none of the rounds to come is shorter.
MARGIN = 1.25


def round_us(call: Body, calls: int) -> float:
    """Microseconds of that many calls, with which the device is done."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return 1e6 * (time.perf_counter() - start)


def round_of(call: Body) -> int:
    """How many calls take ``ROUND_US`` at their quickest, and some more."""
    calls = 1
    while (us := min(round_us(call, calls) for _ in range(3))) < MARGIN * ROUND_US:
        calls = ceil(MARGIN * calls * MARGIN * ROUND_US / us)
    return calls
