"""Reflection padding alone: kernels against PyTorch's own, forward and backward.

    pytest bench/bench_reflection_pad.py --benchmark-only
    python -m bench.bench_reflection_pad OUT.json [--providers NAME ...] [--commit HASH]

Rows as in bench_instance_norm.py. ``ref`` restores channels_last, ``native`` is ``F.pad`` alone.
"""

import torch
from torch.nn import functional as F

from bench.op_bench import DEVICE, Differentiable, ImageCase, OpBench, random_image
from fastcyclegan.kernels.reflection_pad import pad_ref, reflection_pad

# The first and the last convolution of the ResNet, its trunk, and 134 MB beyond the L2 cache.
CASES = [
    *(ImageCase((n, 3, 256, 256), pad=3) for n in (1, 2, 8)),
    *(ImageCase((n, 64, 256, 256), pad=3) for n in (1, 2, 8)),
    *(ImageCase((n, 256, 64, 64), pad=1) for n in (1, 2, 8)),
    ImageCase((64, 256, 64, 64), pad=1),
]
SMALL = [ImageCase((2, 16, 32, 32), pad=3)]
PADS = {
    "triton": lambda x, pad: reflection_pad(x, pad, impl="triton"),
    "compile": pad_ref,
    "ref": pad_ref,
    "native": lambda x, pad: F.pad(x, (pad,) * 4, mode="reflect"),
}


def run(case: ImageCase, provider: str) -> Differentiable:
    draw = torch.Generator(DEVICE).manual_seed(0)
    x = random_image(case.shape, case.dtype, draw).requires_grad_()
    pad = PADS[provider]
    return Differentiable(
        lambda x: (pad(x, case.pad),), lambda x: (pad_ref(x, case.pad),), [x], provider
    )


def counted_bytes(case: ImageCase, mode: str) -> int:
    """x and y, once in each direction."""
    n, c, h, w = case.shape
    pixels = h * w + (h + 2 * case.pad) * (w + 2 * case.pad)
    return n * c * pixels * case.dtype.itemsize * (2 if mode == "fwd_bwd" else 1)


OP = OpBench("reflection_pad", run, counted_bytes, CASES, SMALL)


@OP.parametrize
def bench_reflection_pad(benchmark, row) -> None:
    OP.bench(benchmark, row)


if __name__ == "__main__":
    OP.main()
