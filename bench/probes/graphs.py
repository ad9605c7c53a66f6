"""What a CUDA graph costs (fixed, and per node) and what two streams inside a graph gain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bench.probes.timing import (
    Body,
    Budget,
    capture,
    elapsed_ms,
    host_ms,
    interleaved_us,
    spread,
)


def graph_nodes(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Replay time of chains of dependent kernels: us per node, and the cost of a launch."""
    sizes = {"1_element": 1, "128_KiB": 1 << 16, "2_MiB": 1 << 20}
    counts = (1, 50) if tiny else (1, 100, 500, 1000)
    section: dict = {"chain": "x.add_(1) on bf16, in place, one stream"}
    for label, elements in sizes.items():
        x = torch.zeros(elements, dtype=torch.bfloat16, device=device)
        replays = {n: capture(_chain(x, n), device) for n in counts}
        replay_us = {n: _replay_us(run, device) for n, run in replays.items()}
        most = max(counts)
        slope = (replay_us[most]["median"] - replay_us[1]["median"]) / (most - 1)
        section[label] = {
            "replay_us": {str(n): v for n, v in replay_us.items()},
            "us_per_node": round(slope, 3),
        }
        section[label]["host_us_per_launch"] = {
            str(n): _host_us(run, device) for n, run in replays.items()
        }
    section["eager_us_per_launch"] = _eager_us(device)
    return section


def _chain(x: torch.Tensor, count: int) -> Body:
    def run() -> None:
        for _ in range(count):
            x.add_(1)

    return run


def _replay_us(run: Body, device: torch.device) -> dict[str, float]:
    return spread([1e3 * ms for ms in elapsed_ms(run, device, 40)[5:]])


def _host_us(run: Body, device: torch.device, repeats: int = 20) -> dict[str, float]:
    """Host time of a launch onto an idle device, without waiting for it."""
    return spread([1e3 * ms for ms in host_ms(run, device, repeats)], 1)


def _eager_us(device: torch.device) -> dict[str, float]:
    """Host-bound time of one eager launch: 1000 tiny kernels without a graph."""
    run = _chain(torch.zeros(1, dtype=torch.bfloat16, device=device), 1000)
    run()
    return spread(elapsed_ms(run, device, 7))


def two_streams(run_a: Body, run_b: Body, device: torch.device) -> Body:
    """A body that runs both bodies on two streams, forked from and joined to the current one."""
    if device.type != "cuda":
        return serial(run_a, run_b)
    # Streams come from a small pool in turn, so that one of the two may be the current stream.
    sides = [torch.cuda.Stream(), torch.cuda.Stream()]

    def run() -> None:
        current = torch.cuda.current_stream()
        side = next(s for s in sides if s != current)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run_b()
        run_a()
        current.wait_stream(side)

    return run


def serial(run_a: Body, run_b: Body) -> Body:
    """A body that runs both bodies one after the other."""

    def run() -> None:
        run_a()
        run_b()

    return run


def overlap(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Two independent pieces of work in one graph: one stream against two, for the trunk layer."""
    section: dict = {"layer": "3x3 256->256 on 64x64, bf16 channels_last", "cases": []}
    for depth in (1, 9):
        run_a, run_b = (_sleep_chain(device, depth) for _ in range(2))
        section["cases"].append(_compare(f"control: {depth} spins", 0, run_a, run_b, device))
    for batch in (1, 2) if tiny else (1, 2, 3, 4, 8):
        for name, make in _WORK.items():
            run_a, run_b = make(batch, device, tiny), make(batch, device, tiny)
            section["cases"].append(_compare(name, batch, run_a, run_b, device))
        dgrad, wgrad = (_backward(batch, device, tiny, mask) for mask in (True, False))
        section["cases"].append(_compare("dgrad | wgrad", batch, dgrad, wgrad, device))
        convs, norms = _conv_chain(batch, device, tiny), _norm_chain(batch, device, tiny)
        section["cases"].append(_compare("9 convs | 9 norms", batch, convs, norms, device))
    return section


def _compare(name: str, batch: int, run_a: Body, run_b: Body, device: torch.device) -> dict:
    bodies = {
        "a": run_a,
        "b": run_b,
        "serial": serial(run_a, run_b),
        "two_streams": two_streams(run_a, run_b, device),
    }
    us = interleaved_us(bodies, device, repeats=18)
    gain = us["serial"]["median"] / us["two_streams"]["median"]
    return {"work": name, "N": batch, "us": us, "gain": round(gain, 3)}


def _sleep_chain(device: torch.device, depth: int) -> Body:
    """Kernels of one block that spin for some 10 us: two streams must run them side by side."""

    def run() -> None:
        for _ in range(depth):
            if device.type == "cuda":
                torch.cuda._sleep(18_000)

    return run


def _trunk(batch: int, device: torch.device, tiny: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, 256, 64, 64) and a weight so scaled that chains neither grow nor vanish."""
    channels, side = (8, 8) if tiny else (256, 64)
    x = torch.randn(batch, channels, side, side, dtype=torch.bfloat16, device=device)
    weight = torch.randn(channels, channels, 3, 3, dtype=torch.bfloat16, device=device)
    weight = weight * (9 * channels) ** -0.5
    return tuple(t.to(memory_format=torch.channels_last) for t in (x, weight))


def _single(batch: int, device: torch.device, tiny: bool) -> Body:
    x, weight = _trunk(batch, device, tiny)
    return lambda: F.conv2d(x, weight, padding=1)


def _conv_chain(batch: int, device: torch.device, tiny: bool, depth: int = 9) -> Body:
    x, weight = _trunk(batch, device, tiny)

    def run() -> None:
        y = x
        for _ in range(depth):
            y = F.conv2d(y, weight, padding=1)

    return run


def _norm_chain(batch: int, device: torch.device, tiny: bool, depth: int = 9) -> Body:
    """Memory-bound work of about an instance norm's traffic: three elementwise passes per link."""
    x, _ = _trunk(batch, device, tiny)

    def run() -> None:
        y = x
        for _ in range(depth):
            y = torch.relu(y.mul(1.01).add(0.01))

    return run


def _block_chain(batch: int, device: torch.device, tiny: bool, depth: int = 9) -> Body:
    """Links of one convolution and two elementwise passes: the shape of a generator's trunk."""
    x, weight = _trunk(batch, device, tiny)

    def run() -> None:
        y = x
        for _ in range(depth):
            y = torch.relu(F.conv2d(y, weight, padding=1).add(0.01))

    return run


def _backward(batch: int, device: torch.device, tiny: bool, data: bool) -> Body:
    x, weight = _trunk(batch, device, tiny)
    dy = torch.randn_like(x)
    mask = [data, not data, False]
    ones, zeros = [1, 1], [0, 0]
    return lambda: torch.ops.aten.convolution_backward(
        dy, x, weight, None, ones, ones, ones, False, zeros, 1, mask
    )


_WORK: dict[str, Callable[[int, torch.device, bool], Body]] = {
    "conv | conv": _single,
    "9 convs | 9 convs": _conv_chain,
    "9 (conv, add, relu) | the same": _block_chain,
}
