"""What the benches of the fused norms measure: shapes, providers, counted bytes.

Provider ``native`` is PyTorch's own instance norm, ReLU and padding.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from bench.op_bench import DEVICE, Differentiable, random_image
from fastcyclegan.kernels.instance_norm import (
    instance_norm,
    instance_norm_pad,
    instance_norm_ref,
)
from fastcyclegan.kernels.reflection_pad import pad_ref


class Case(NamedTuple):
    """One norm of the networks; with ``residual`` its skip goes on to the next block."""

    shape: tuple[int, int, int, int]
    act: str = "relu"
    pad: int = 0
    residual: bool = False
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        shape = "x".join(str(n) for n in self.shape)
        words = [shape, str(self.dtype).removeprefix("torch."), self.act]
        words += ["residual"] * self.residual + [f"pad{self.pad}"] * (self.pad > 0)
        return "-".join(words)


TRUNK = [Case((n, 256, 64, 64), pad=1) for n in (1, 2, 8)]
RESIDUAL = [Case((n, 256, 64, 64), "none", 1, True) for n in (1, 2, 8)]
WIDE = [Case((n, 64, 256, 256)) for n in (1, 2, 8)]
OTHERS = [
    case
    for n in (1, 2, 8)
    for case in (
        Case((n, 64, 256, 256), pad=3),
        Case((n, 128, 128, 128)),
        Case((n, 128, 64, 64), "leaky_relu"),
        Case((n, 512, 31, 31), "leaky_relu"),
    )
]
# 134 MB per tensor: beyond the L2 cache of every GPU so far.
LARGE = [
    Case((64, 256, 64, 64), pad=1),
    Case((64, 256, 64, 64), "none", 1, True),
    Case((16, 64, 256, 256)),
]
CASES = TRUNK + RESIDUAL + WIDE + OTHERS + LARGE
SMALL = [Case((2, 16, 16, 16), "none", 1, True), Case((2, 32, 16, 16))]


def norm(x: torch.Tensor, residual: torch.Tensor | None, case: Case, provider: str) -> tuple:
    """The outputs of ``case``: one, or with a residual the padded one and the skip."""
    options: dict[str, Any] = {"act": case.act, "pad": case.pad}
    if provider == "native":
        y = F.instance_norm(x)
        y = {"none": y, "relu": F.relu(y), "leaky_relu": F.leaky_relu(y, 0.2)}[case.act]
        y = y if residual is None else y + residual
        padded = F.pad(y, (case.pad,) * 4, mode="reflect") if case.pad else y
        return (padded,) if residual is None else (padded, y)
    if provider == "triton":
        if residual is None:
            return (instance_norm(x, **options, impl="triton"),)
        return instance_norm_pad(x, residual=residual, **options, impl="triton")
    if residual is None:
        return (instance_norm_ref(x, **options),)
    y = instance_norm_ref(x, residual=residual)
    return pad_ref(y, case.pad), y


class Run(Differentiable):
    """Inputs of one case, and bodies to time for each provider and mode."""

    def __init__(self, case: Case, provider: str, device: torch.device = DEVICE) -> None:
        draw = torch.Generator(device).manual_seed(0)
        inputs = [
            random_image(case.shape, case.dtype, draw).requires_grad_()
            for _ in range(2 if case.residual else 1)
        ]

        def function(x, residual=None, of=provider) -> tuple:
            return norm(x, residual, case, of)

        super().__init__(function, partial(function, of="ref"), inputs, provider)


def counted_bytes(case: Case, mode: str) -> int:
    """The bytes that the fused kernels must move, partial sums left out."""
    n, c, h, w = case.shape
    size = case.dtype.itemsize
    x = n * c * h * w * size
    y = n * c * (h + 2 * case.pad) * (w + 2 * case.pad) * size
    forward = 2 * x + y + x * case.residual
    backward = 2 * y + 3 * x + 3 * x * case.residual
    return {"fwd": forward, "bwd": backward, "fwd_bwd": forward + backward}[mode]
