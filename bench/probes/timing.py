"""Timing shared by the probes: graph capture, event timing, interleaving and kernel traces.

On CUDA a body is captured in a graph and its replays are timed with events, so that launch gaps of
the host stay out of the figure. On a CPU (dry run) the body is timed as it is. Every figure is a
median with its 10th and 90th percentile over the repeats.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

Body = Callable[[], object]


class Budget:
    """Wall-clock allowance in seconds; probes with long tables ask it before each row."""

    def __init__(self, seconds: float) -> None:
        self.start = time.monotonic()
        self.seconds = seconds

    def used(self) -> float:
        return time.monotonic() - self.start

    def left(self) -> float:
        return self.seconds - self.used()


def spread(samples: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Median, 10th and 90th percentile and count of the samples, in the samples' unit."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return {
        "median": round(statistics.median(ordered), digits),
        "p10": round(ordered[round(0.1 * last)], digits),
        "p90": round(ordered[round(0.9 * last)], digits),
        "n": len(ordered),
    }


def capture(body: Body, device: torch.device) -> Body:
    """Warms `body` up, captures it in a CUDA graph and returns the replay; on a CPU, `body`."""
    if device.type != "cuda":
        body()
        return body
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            body()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def elapsed_ms(run: Body, device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each of `repeats` calls of `run`, enqueued back to back."""
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
        return times
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]


def host_ms(run: Body, device: torch.device, repeats: int) -> list[float]:
    """Host time to enqueue `run` on an idle device; near its whole time it is host-bound."""
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def calls_per_graph(body: Body, device: torch.device, target_ms: float = 1.0) -> int:
    """How many calls of `body` a graph should hold to run for about `target_ms`: 4 to 60."""
    if device.type != "cuda":
        return 1
    body()
    per_call = statistics.median(elapsed_ms(body, device, 5))
    return max(4, min(60, round(target_ms / max(per_call, 1e-3))))


def graph_us(body: Body, device: torch.device, repeats: int = 15, **kwargs) -> dict[str, float]:
    """Microseconds per call of `body`, from replays of a graph that holds it many times."""
    return interleaved_us({"": body}, device, repeats, **kwargs)[""]


def interleaved_us(
    bodies: dict[str, Body], device: torch.device, repeats: int = 15, target_ms: float = 1.0
) -> dict[str, dict[str, float]]:
    """As `graph_us` for several bodies in turn, so that drift hits all of them alike."""
    replays, counts = {}, {}
    for name, body in bodies.items():
        count = calls_per_graph(body, device, target_ms)
        replays[name] = capture(repeated(body, count), device)
        counts[name] = count
    samples: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(max(1, repeats // 3)):
        for name, replay in replays.items():
            # The first replay of a burst pays for the switch between graphs.
            samples[name] += elapsed_ms(replay, device, 4)[1:]
    return {k: spread([1e3 * ms / counts[k] for ms in v]) for k, v in samples.items()}


def l2_bytes(device: torch.device) -> int:
    """Of the cache that all multiprocessors share."""
    return torch.cuda.get_device_properties(device).L2_cache_size


def cold_us(body: Body, device: torch.device, **kwargs) -> dict[str, float]:
    """As `graph_us` with other data in the L2 cache before each call, whose time is taken off."""
    size = 2 * l2_bytes(device) // 4
    others, total = torch.zeros(size, device=device), torch.empty((), device=device)

    def read() -> None:
        # Reading leaves nothing behind that the body would have to write back.
        torch.sum(others, 0, out=total)

    def both() -> None:
        read()
        body()

    times = interleaved_us({"read": read, "both": both}, device, **kwargs)
    taken = times["read"]["median"]
    return {k: v if k == "n" else round(v - taken, 3) for k, v in times["both"].items()}


def repeated(body: Body, count: int) -> Body:
    """A body that calls ``body`` so many times."""

    def run() -> None:
        for _ in range(count):
            body()

    return run


def rotate(body: Callable[..., object], sets: list[tuple]) -> Body:
    """A body that calls `body(*inputs)` with the next input set each time."""
    position = 0

    def run() -> object:
        nonlocal position
        position = (position + 1) % len(sets)
        return body(*sets[position])

    return run


def trace_kernels(body: Body, device: torch.device, calls: int = 1) -> list[dict]:
    """Device activities (kernels, copies, fills) of `calls` calls, or a CPU's operators.

    Each is a dict of name, kind, ts_us and dur_us.
    """
    on_gpu = device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    body()
    if on_gpu:
        torch.cuda.synchronize()
    with torch.profiler.profile(activities=[activity.CUDA if on_gpu else activity.CPU]) as prof:
        for _ in range(calls):
            body()
        if on_gpu:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        prof.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if on_gpu else ("cpu_op",)
    return [
        {"name": e["name"], "kind": e["cat"], "ts_us": float(e["ts"]), "dur_us": float(e["dur"])}
        for e in events
        if e.get("ph") == "X" and e.get("cat") in kinds
    ]


def busy_us(events: list[dict]) -> float:
    """Length in us of the union of the activities' time ranges."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted((e["ts_us"], e["ts_us"] + e["dur_us"]) for e in events):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def peak_bytes(body: Body, device: torch.device) -> int:
    """The most that tensors made by a call of `body` take at once."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        body()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activity = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity], profile_memory=True) as prof:
        body()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes), default=0)


def free_memory(device: torch.device) -> None:
    """Returns the cached device memory of the last case, so that cases do not crowd each other."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
