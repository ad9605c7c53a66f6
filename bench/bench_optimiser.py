"""One optimiser step over the generators of the paper: torch's ways to run Adam, and ours whole.

    pytest bench/bench_optimiser.py --benchmark-only

``update`` is what a bf16 step does: gradients in bf16 into fp32, fused Adam, copies in bf16 again.
Each way must reach the weights of plain Adam.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from bench.ceilings import DEVICE, copy_gb_per_s
from bench.probes.timing import elapsed_ms, peak_bytes, spread
from bench.rounds import round_of, round_us
from fastcyclegan.config import TrainConfig
from fastcyclegan.steps.assembly import make_networks
from fastcyclegan.steps.optimiser import Weights, adam

WAYS = {
    "plain": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
LR = 2e-4
# Adam reads weight, gradient and both moments in fp32, and writes all but the gradient.
BYTES = 28
# Weights after one step of size LR, in fp32.
LARGEST_ERROR = 1e-3 * LR


@functools.cache
def shapes() -> list[torch.Size]:
    """Of the weights of both generators."""
    networks = make_networks(TrainConfig(), torch.device("cpu"))
    return [p.shape for name in ("G_A", "G_B") for _, p in networks[name].live_parameters()]


def tensors(seed: int) -> list[torch.Tensor]:
    draw = torch.Generator(DEVICE).manual_seed(seed)
    return [torch.randn(s, device=DEVICE, generator=draw) for s in shapes()]


def torch_way(name: str) -> tuple[Callable[[], object], list[torch.Tensor]]:
    """A step, and the weights that it moves."""
    weights = [w.requires_grad_() for w in tensors(0)]
    for weight, gradient in zip(weights, tensors(1), strict=True):
        weight.grad = gradient
    return torch.optim.Adam(weights, lr=LR, betas=(0.5, 0.999), **WAYS[name]).step, weights


def our_way() -> tuple[Callable[[], object], list[torch.Tensor]]:
    nets = make_networks(TrainConfig(), DEVICE)
    owners = [Weights(nets[name], torch.bfloat16) for name in ("G_A", "G_B")]
    optimiser = adam(owners, LR, 0.5)
    masters = [p for owner in owners for p in owner.masters]
    gradients, start = tensors(1), tensors(0)
    with torch.no_grad():
        torch._foreach_copy_(masters, start)
    remaining = iter([g.bfloat16() for g in gradients])
    given = [[next(remaining) for _ in owner.masters] for owner in owners]

    def step() -> None:
        for owner, of_network in zip(owners, given, strict=True):
            owner.set_gradients(of_network)
        optimiser.step()
        for owner in owners:
            owner.refresh()

    return step, masters


@functools.cache
def expected() -> list[torch.Tensor]:
    step, weights = torch_way("plain")
    step()
    return [w.detach().clone() for w in weights]


def agreed(way: str, weights: list[torch.Tensor]) -> float:
    """How far weights are off after a step of ``way``. Raises AssertionError if too far."""
    pairs = zip(weights, expected(), strict=True)
    error = max(float((w.detach() - e).abs().max()) for w, e in pairs)
    assert error <= LARGEST_ERROR, f"{way} is off by {error:g}: nothing is recorded"
    return error


@pytest.mark.parametrize("way", [*WAYS, "update"])
def bench_optimiser(benchmark, way: str) -> None:
    step, weights = our_way() if way == "update" else torch_way(way)
    step()
    error = agreed(way, weights)
    count = sum(w.numel() for w in weights)
    seconds = spread([ms / 1e3 for ms in elapsed_ms(step, DEVICE, 22)[2:]], 6)
    gb_per_s = count * BYTES / seconds["median"] / 1e9
    benchmark.group = f"optimiser, {count / 1e6:.1f} M weights, {DEVICE}"
    benchmark.extra_info |= {
        "seconds_of_one": seconds,
        "GB_per_s": gb_per_s,
        "of_copy": gb_per_s / copy_gb_per_s(),
        "max_error": error,
        "peak_MiB": peak_bytes(step, DEVICE) / 2**20,
        "threads": torch.get_num_threads(),
    }
    calls = round_of(step)
    benchmark.pedantic(round_us, (step, calls), rounds=5, warmup_rounds=1)
