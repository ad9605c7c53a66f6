"""A ladder in one process: every row timed in turn, and what pytest-benchmark is told of it.

A busy moment of the machine hits all rows alike; what counts is the median over rounds and its
ratio to the first row. Times of a GPU are those of device events around steps in a row, at least
``ROUND_MS`` of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import pytest
import torch

from bench.ceilings import matmul_tflop_per_s
from bench.probes.timing import elapsed_ms, peak_bytes, spread
from bench.step_rows import DEVICE, Begun, Row, Size, begin, flops, missing, set_switches
from fastcyclegan.memory import keep_freed_memory

ROUND_MS = 5.0
WARM_UP = 6  # a captured step is recorded in them


@dataclass
class Timed:
    """A row: its step, how many of them are a round, and the seconds of one by round.

    ``peak``: bytes that it takes at most; on a CPU those that a step adds to what stays.
    """

    begun: Begun
    calls: int
    peak: int | None
    samples: list[float] = field(default_factory=list)

    def round(self) -> float:
        """Seconds of a step, on average over a round; the device is done with them."""
        return sum(elapsed_ms(self.begun.step, DEVICE, self.calls)) / self.calls / 1e3

    @property
    def seconds(self) -> float:
        """The median over rounds."""
        return statistics.median(self.samples)


class Ladder:
    """Rows of one size, timed when the first of them is asked for.

    Args:
        kind: what a step is of, for the name of the table.
        rows: the first is what others are compared with; one whose peer or compiler is absent is
            skipped.
        rounds: of all rows.
    """

    def __init__(self, kind: str, rows: Sequence[Row], size: Size, batch: int, rounds: int) -> None:
        self.rows, self.size, self.batch, self.rounds = rows, size, batch, rounds
        images = f", batch {batch}" if batch > 1 else ""
        self.group = f"{kind}, {size.name}{images}, {DEVICE}"
        self._timed: dict[str, Timed] = {}

    def timed(self) -> dict[str, Timed]:
        """Every row that can be measured here, by name."""
        if not self._timed:
            if DEVICE.type == "cpu":
                keep_freed_memory()
            here = [row for row in self.rows if missing(row, self.size) is None]
            found = {row: self._begun(row) for row in here}
            for _ in range(self.rounds):
                for row, timed in found.items():
                    set_switches(row)
                    timed.samples.append(timed.round())
            self._timed = {row.name: timed for row, timed in found.items()}
        return self._timed

    def _begun(self, row: Row) -> Timed:
        begun = begin(row, self.size, self.batch)
        if DEVICE.type == "cuda":
            ms = elapsed_ms(begun.step, DEVICE, WARM_UP)[-1]
            return Timed(begun, ceil(ROUND_MS / ms), begun.peak)
        # a peer's memory is that of another process
        return Timed(begun, 1, peak_bytes(begun.step, DEVICE) if row.peer is None else None)

    def report(self, benchmark: Any, row: Row) -> None:
        """Record ``row``; one that is off is refused. Raises AssertionError."""
        lack = missing(row, self.size)
        if lack:
            pytest.skip(lack)
        table = self.timed()
        timed, base = table[row.name], next(iter(table))
        timed.begun.check(row)
        reached = flops(self.size, self.batch) / timed.seconds / 1e12
        dtype = torch.bfloat16 if row.precision == "bf16" else torch.float32
        benchmark.group = self.group
        benchmark.extra_info |= {
            "interleaved_median_seconds": timed.seconds,
            "interleaved_seconds": spread(timed.samples, 6),
            "first_call_seconds": timed.begun.seconds,
            f"speedup_over {base}": table[base].seconds / timed.seconds,
            "TFLOP_per_s": reached,
            "of_matmul": reached / matmul_tflop_per_s(dtype),
            "max_error": timed.begun.error,
            "gradient_error": timed.begun.gradient_error,
            "peak_MiB": timed.peak and timed.peak / 2**20,
            "threads": torch.get_num_threads(),
        }
        set_switches(row)
        benchmark.pedantic(timed.round, rounds=3)
