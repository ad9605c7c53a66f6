"""What is measured of a step, whichever row it is, and the table of a ladder."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch

from bench.gpu_suite.cases import Case, Result
from bench.probes.peer import kernel_profile
from bench.probes.timing import elapsed_ms, host_ms, spread
from bench.step_rows import DEVICE, Row, Size, begin, set_switches

# Steps before the first that is timed: a captured one is recorded in them.
WARM_UP = 6
TIMED_MS, FEWEST, MOST = 3000.0, 10, 200
TRACED, HOST = 3, 10
WIDTHS = (17, 7, 9, 8, 8, 7, 6, 6)


def step_cases(
    rows: Sequence[Row],
    size: Size,
    batches: Sequence[Sequence[int]],
    step: str,
    tflop: Callable[[Row], float] | None = None,
    first: Sequence[str] = (),
) -> Iterator[Case]:
    """A case for each row and batch; those of one row in a set of ``batches`` share a process.

    Args:
        step: whose it is, for the name of a table.
        tflop: that one image, or pair, needs, whatever the row computes.
        first: names of the rows that are run first.
    """
    turns = {name: turn for turn, name in enumerate(first)}
    for place, together in enumerate(batches):
        for row in rows:
            turn = place * (len(turns) + 1) + turns.get(row.name, len(turns))
            wanted = [batch for batch in together if not row.batches or batch in row.batches]
            for batch in wanted:
                extra = {"TFLOP": tflop(row) * batch} if tflop else {}
                extra |= {"group": f"{step}, {size.name}, batch {batch}, {DEVICE}"}
                run = partial(measure, row, size, batch, extra)
                seconds = 60.0 if row.compiles else 15.0
                limit = 300.0 if row.mode else 180.0
                process = f"{row.name} {together}"
                yield Case(f"{row.name}, batch {batch}", run, seconds, limit, process, turn)


def measure(row: Row, size: Size, batch: int, extra: Result) -> Result:
    """``extra``, and the times of a step, its memory, its kernels, and how far it is off."""
    begun = begin(row, size, batch)
    begun.check(row)
    set_switches(row)
    result: Result = {"row": row.name, **extra, "batch": batch, "max_error": begun.error}
    result |= {"gradient_error": begun.gradient_error}
    result |= {"losses": [round(x, 5) for x in begun.losses.flatten().tolist()]}
    result |= {"first_call_seconds": round(begun.seconds, 2)} | _timed(begun.step)
    if begun.peak is not None:
        reserved = torch.cuda.max_memory_reserved()
        result |= {"peak_GiB": round(begun.peak / 2**30, 3)}
        result |= {"reserved_GiB": round(reserved / 2**30, 3)}
    result["images_per_s"] = round(1e3 * batch / result["ms"]["median"], 2)
    # Last: the profiler slows the launches behind it down.
    return result | _traced(begun.step)


def _timed(step: Callable[[], torch.Tensor]) -> Result:
    few = elapsed_ms(step, DEVICE, WARM_UP)
    count = TIMED_MS / max(statistics.median(few[-2:]), 1e-3)
    count = round(min(MOST, max(FEWEST, count))) if DEVICE.type == "cuda" else 3
    # In three rounds, so that a busy moment of the host shows in the spread.
    times = [ms for _ in range(3) for ms in elapsed_ms(step, DEVICE, 2 + count // 3)[2:]]
    return {"ms": spread(times), "host_ms": spread(host_ms(step, DEVICE, HOST))}


def _traced(step: Callable[[], torch.Tensor]) -> Result:
    """Where the time goes: which kernels, and what changes layouts or copies among them."""
    found, shown = kernel_profile(step, DEVICE, TRACED), ("name", "launches", "ms")
    kernels, activities = found["kernels_per_step"], found["device_activities_per_step"]
    return {
        "kernels": kernels,
        "copies_and_fills": round(activities - kernels, 1) if DEVICE.type == "cuda" else 0.0,
        "busy_ms": found["gpu_busy_ms_per_step"],
        "classes": [{x: row[x] for x in shown} for row in found["classes"]],
        "top_kernels": [{x: row[x] for x in shown} for row in found["top_kernels"]],
    }


def table(
    rows: Sequence[Row], results: Mapping[str, Result], matmul: float | None = None
) -> list[str]:
    """A line per row and batch, batch by batch; ``matmul``, in TFLOP/s, is what MFU is of."""
    order = {row.name: place for place, row in enumerate(rows)}
    found = [r for r in results.values() if "ms" in r and r["row"] in order]
    told = []
    for batch in sorted({r["batch"] for r in found}):
        here = sorted((r for r in found if r["batch"] == batch), key=lambda r: order[r["row"]])
        columns = ("p10 to p90", "speed", "images/s", "host ms", "busy ms", "kernels", "GiB", "MFU")
        heads = " ".join(f"{name:>{w}}" for name, w in zip(columns, WIDTHS, strict=True))
        told.append(f"{f'batch {batch}':50} {'ms':>8} {heads}")
        told += [_line(r, here[0]["ms"]["median"], matmul) for r in here]
    return told


def _line(result: Result, first: float, matmul: float | None) -> str:
    ms = result["ms"]
    reached = result["TFLOP"] / ms["median"] * 1e3 if "TFLOP" in result else None
    cells = (
        f"{ms['p10']:.2f} to {ms['p90']:.2f}",
        f"{first / ms['median']:.2f}x",
        f"{result['images_per_s']:.1f}",
        f"{result['host_ms']['median']:.2f}",
        f"{result['busy_ms']:.2f}",
        f"{result['kernels']:.0f}",
        f"{result['peak_GiB']:.2f}" if "peak_GiB" in result else "",
        f"{reached / matmul:.1%}" if reached and matmul else "",
    )
    shown = " ".join(f"{cell:>{w}}" for cell, w in zip(cells, WIDTHS, strict=True))
    return f"{result['row']:50} {ms['median']:8.2f} {shown}"
