"""Batch norm in training with its activation: kernels against PyTorch's own, forward and backward.

    pytest bench/bench_batch_norm.py --benchmark-only
    python -m bench.bench_batch_norm OUT.json [--quick] [--providers NAME ...] [--commit HASH]

Rows as in bench_instance_norm.py. Every call moves the running statistics, as a training step does.
``native`` is PyTorch's batch norm, then its activation.
"""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from bench.op_bench import DEVICE, Differentiable, OpBench, random_image
from fastcyclegan.kernels.batch_norm import batch_norm, batch_norm_ref


class Case(NamedTuple):
    """One batch norm of the networks; its parameters are fp32, as there."""

    shape: tuple[int, int, int, int]
    act: str = "relu"
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        shape = "x".join(str(n) for n in self.shape)
        return f"{shape}-{str(self.dtype).removeprefix('torch.')}-{self.act}"


# DCGAN's at its default batch and at the tutorial's: generator, then discriminator.
GENERATOR = [Case((n, 64 * 2**i, 32 // 2**i, 32 // 2**i)) for n in (64, 128) for i in range(4)]
DISCRIMINATOR = [
    Case((n, 128 * 2**i, 16 // 2**i, 16 // 2**i), "leaky_relu") for n in (64, 128) for i in range(3)
]
# The trunk of a ResNet and a PatchGAN with --norm batch.
JZ = [
    case
    for n in (1, 2, 8)
    for case in (Case((n, 256, 64, 64)), Case((n, 512, 31, 31), "leaky_relu"))
]
# 134 MB per tensor: beyond the L2 cache of every GPU so far.
LARGE = [Case((1024, 64, 32, 32)), Case((2048, 128, 16, 16), "leaky_relu")]
CASES = GENERATOR + DISCRIMINATOR + JZ + LARGE
SMALL = [Case((4, 16, 8, 8)), Case((4, 32, 4, 4), "leaky_relu")]


def native(x, weight, bias, mean, var, act: str) -> torch.Tensor:
    y = F.batch_norm(x, mean, var, weight, bias, training=True)
    return F.leaky_relu(y, 0.2) if act == "leaky_relu" else F.relu(y)


FUNCTIONS = {
    "triton": lambda *tensors, act: batch_norm(*tensors, act=act, impl="triton"),
    "compile": batch_norm_ref,
    "ref": batch_norm_ref,
    "native": native,
}


def run(case: Case, provider: str) -> Differentiable:
    draw = torch.Generator(DEVICE).manual_seed(0)
    c = case.shape[1]
    x = random_image(case.shape, case.dtype, draw)
    weight, bias = (torch.randn(c, device=DEVICE, generator=draw) for _ in range(2))
    inputs = [t.requires_grad_() for t in (x, weight, bias)]

    def of(name: str):
        def function(*tensors) -> tuple:
            return (FUNCTIONS[name](*tensors, *running[tensors[1].dtype], act=case.act),)

        return function

    running = {
        dtype: (
            torch.zeros(c, dtype=dtype, device=DEVICE),
            torch.ones(c, dtype=dtype, device=DEVICE),
        )
        for dtype in (torch.float32, torch.float64)
    }
    return Differentiable(of(provider), of("ref"), inputs, provider)


def counted_bytes(case: Case, mode: str) -> int:
    """Forward reads x twice and writes y; backward reads x and dy twice and writes dx."""
    n, c, h, w = case.shape
    passes = {"fwd": 3, "bwd": 5, "fwd_bwd": 8}[mode]
    return passes * n * c * h * w * case.dtype.itemsize


OP = OpBench("batch_norm", run, counted_bytes, CASES, SMALL, is_norm=True)


@OP.parametrize
def bench_batch_norm(benchmark, row) -> None:
    OP.bench(benchmark, row)


if __name__ == "__main__":
    OP.main(quick=[GENERATOR[0], DISCRIMINATOR[0], *LARGE])
