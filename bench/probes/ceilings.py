"""The two ceilings of the card: copy bandwidth and bf16 matrix rate, on random data."""

from __future__ import annotations

import statistics

import torch

from bench.probes.timing import Budget, elapsed_ms, spread


def ceilings(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Device-to-device copy (bytes read + written) in GB/s and square bf16 matmul in TFLOP/s."""
    size = 1 << (20 if tiny else 32)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = elapsed_ms(lambda: target.copy_(source), device, 25)[5:]

    side = 256 if tiny else 8192
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    out = torch.empty_like(a)
    matmul = elapsed_ms(lambda: torch.mm(a, b, out=out), device, 40)[10:]
    return {
        "copy_bytes": 2 * size,
        "copy_GB_per_s": spread([2 * size / ms / 1e6 for ms in copy], 1),
        "matmul_side": side,
        "matmul_TFLOP_per_s": spread([2 * side**3 / ms / 1e9 for ms in matmul], 1),
        "matmul_ms": round(statistics.median(matmul), 4),
    }
