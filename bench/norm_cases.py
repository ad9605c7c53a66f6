"""What the benches of the fused norms measure: shapes, providers, counted bytes, errors.

Providers: ``triton`` the kernels, ``ref`` the plain reference, ``compile`` torch.compile of it,
``native`` PyTorch's own instance norm, ReLU and padding. Times are those of graph replays.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from bench.probes.timing import elapsed_ms, graph_us
from fastcyclegan.kernels.instance_norm import (
    instance_norm,
    instance_norm_pad,
    instance_norm_ref,
)
from fastcyclegan.kernels.reflection_pad import pad_ref

PROVIDERS = ("triton", "compile", "ref", "native")
MODES = ("fwd", "bwd", "fwd_bwd")


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
    Case((2, 64, 256, 256), pad=3),
    Case((2, 128, 128, 128)),
    Case((2, 128, 64, 64), "leaky_relu"),
    Case((2, 512, 31, 31), "leaky_relu"),
]
# 134 MB per tensor: beyond the L2 cache of every GPU so far.
LARGE = [
    Case((64, 256, 64, 64), pad=1),
    Case((64, 256, 64, 64), "none", 1, True),
    Case((16, 64, 256, 256)),
]
CASES = TRUNK + RESIDUAL + WIDE + OTHERS + LARGE


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


class Run:
    """Inputs of one case, and bodies to time for each provider and mode."""

    def __init__(self, case: Case, provider: str, device: str = "cuda") -> None:
        self.case, self.provider = case, provider
        draw = torch.Generator(device).manual_seed(0)
        count = 2 if case.residual else 1
        self.inputs = [
            self._image(case.shape, case.dtype, draw).requires_grad_() for _ in range(count)
        ]
        function = norm
        if provider == "compile":
            torch._dynamo.reset()
            # Mode bwd runs backward of one forward many times.
            torch._functorch.config.donated_buffer = False
            function = torch.compile(norm, fullgraph=True, dynamic=False)
        residual = self.inputs[1] if case.residual else None
        self.forward: Callable[[], tuple] = lambda: function(
            self.inputs[0], residual, case, provider
        )
        self.dys = [self._image(y.shape, case.dtype, draw) for y in self.forward()]

    @staticmethod
    def _image(shape, dtype, draw) -> torch.Tensor:
        n, c, h, w = shape
        x = torch.randn((n, h, w, c), device=draw.device, generator=draw) * 2 + 1
        return x.to(dtype).permute(0, 3, 1, 2)

    def gradients(self, outputs: tuple, retain: bool = False) -> tuple:
        return torch.autograd.grad(outputs, self.inputs, self.dys, retain_graph=retain)

    def body(self, mode: str) -> Callable[[], object]:
        """A function that runs ``mode`` once."""
        if mode == "fwd":
            return torch.no_grad()(self.forward)
        if mode == "fwd_bwd":
            return lambda: self.gradients(self.forward())
        outputs = self.forward()
        return lambda: self.gradients(outputs, retain=True)

    def us(self, mode: str) -> dict[str, float]:
        """Microseconds per call: median, 10th and 90th percentile of graph replays."""
        device = self.inputs[0].device
        if device.type == "cpu":
            return graph_us(self.body(mode), device)
        # Backward runs on the stream of its forward, which must be the one that is captured.
        stream = torch.cuda.graph.default_capture_stream or torch.cuda.Stream()
        torch.cuda.graph.default_capture_stream = stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            return graph_us(self.body(mode), device)

    def error(self) -> dict[str, float]:
        """Largest error of output and gradient against fp64, in units of their largest value."""
        outputs = self.forward()
        found = {"y": outputs[0].detach(), "dx": self.gradients(outputs)[0]}
        x, residual = (*(t.detach().double().requires_grad_() for t in self.inputs), None)[:2]
        inputs = [t for t in (x, residual) if t is not None]
        true = norm(x, residual, self.case, "ref")
        dys = [dy.double() for dy in self.dys]
        truth = {"y": true[0].detach(), "dx": torch.autograd.grad(true, inputs, dys)[0]}
        return {
            name: float(f"{(found[name] - t).abs().max() / t.abs().max():.3g}")
            for name, t in truth.items()
        }


def counted_bytes(case: Case, mode: str) -> int:
    """The bytes that the fused kernels must move, partial sums left out."""
    n, c, h, w = case.shape
    size = case.dtype.itemsize
    x = n * c * h * w * size
    y = n * c * (h + 2 * case.pad) * (w + 2 * case.pad) * size
    forward = 2 * x + y + x * case.residual
    backward = 2 * y + 3 * x + 3 * x * case.residual
    return {"fwd": forward, "bwd": backward, "fwd_bwd": forward + backward}[mode]


def copy_gb_per_s(device: str = "cuda", bytes_each: int = 2**32) -> float:
    """GB/s of a device-to-device copy, read and written bytes counted."""
    source = torch.empty(bytes_each // 4, dtype=torch.int32, device=device).random_()
    target = torch.empty_like(source)
    # Not from a graph: there a copy is a node of its own kind, and slower.
    times = elapsed_ms(lambda: target.copy_(source), source.device, 25)[5:]
    return round(2 * bytes_each / statistics.median(times) / 1e6, 1)
