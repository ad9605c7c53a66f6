"""What the tests of the ops share: tolerances, NumPy oracles, layouts, guarded memory.

Truth is the reference in fp64, on the same rounded inputs. An op passes if its largest error is at
most twice that of the reference in the op's own dtype, plus an allowance for luck: the rounding of
a single result may fall either way.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcyclegan.kernels.dispatch import interpreted

# In units of the largest true value. fp32 and fp64: sums of many values that partly cancel,
# in another order than the reference's. bf16 and fp16: one ulp of results that are rounded once;
# under the interpreter bf16 stores truncate.
ALLOWANCE = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.float16: 2.0**-11,
    torch.bfloat16: 2.0**-8,
}
DTYPES = tuple(ALLOWANCE)
# Options of an instance norm; True stands for a tensor.
CASES = {
    "plain": {},
    "relu": {"act": "relu"},
    "leaky_relu": {"act": "leaky_relu", "slope": 0.2},
    "relu pad 1": {"act": "relu", "pad": 1},
    "leaky_relu pad 3": {"act": "leaky_relu", "slope": 0.1, "pad": 3},
    "affine": {"weight": True, "bias": True},
    "weight relu pad 1": {"weight": True, "act": "relu", "pad": 1},
    "residual": {"residual": True},
    "residual pad 1": {"residual": True, "pad": 1},
    "residual relu pad 2": {"residual": True, "residual_relu": True, "pad": 2},
    "affine residual relu": {"weight": True, "bias": True, "residual": True, "residual_relu": True},
}
LAYOUTS = ("channels_last", "nchw", "sliced", "expanded")
ROOT = Path(__file__).resolve().parent.parent

# The kernels run on a GPU, or in a process of their own under Triton's interpreter.
DEVICES = ["cpu"] if interpreted() else [pytest.param("cuda", marks=pytest.mark.cuda)]


def make(case, shape, dtype, device):
    """(tensor inputs by name, options) of a case."""
    options = dict(CASES[case])
    tensors = {"x": image(shape, dtype, device)}
    for seed, name in enumerate(("weight", "bias"), 1):
        if options.pop(name, False):
            draw = np.random.default_rng(seed).normal(size=shape[1]) + 1
            tensors[name] = torch.from_numpy(draw).to(device=device, dtype=dtype)
    if options.pop("residual", False):
        tensors["residual"] = image(shape, dtype, device, seed=3)
    return tensors, options


def limit(truth: torch.Tensor, peer: torch.Tensor) -> float:
    """The largest error allowed for a result whose same-dtype reference is ``peer``."""
    if not truth.numel():
        return 0.0
    error = (peer.double() - truth).abs().max()
    return float(2 * error + ALLOWANCE[peer.dtype] * truth.abs().max())


def assert_close(actual: torch.Tensor, truth: torch.Tensor, peer: torch.Tensor, what: str) -> None:
    """Fail unless ``actual`` is as near to ``truth`` (fp64) as the module's rule demands."""
    assert actual.shape == truth.shape, what
    assert actual.dtype == peer.dtype, what
    if truth.numel():
        error = float((actual.double() - truth).abs().max())
        # Written so that NaN fails.
        assert error <= limit(truth, peer), f"{what}: {error:.3g} > {limit(truth, peer):.3g}"


def image(shape: Sequence[int], dtype: torch.dtype, device: str, seed: int = 0) -> torch.Tensor:
    """(N, C, H, W) in channels_last, with means and spreads that differ between channels."""
    draw = np.random.default_rng(seed)
    n, c, h, w = shape
    x = draw.normal(size=(n, h, w, c)) * draw.uniform(0.5, 3, c) + draw.normal(size=c) * 2
    return torch.from_numpy(x).to(device=device, dtype=dtype).permute(0, 3, 1, 2)


def in_layout(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The values of ``x`` in another layout; ``expanded`` repeats its first pixel everywhere."""
    if layout == "nchw":
        return x.contiguous()
    if layout == "sliced":
        n, c, h, w = x.shape
        # NaN around it: a kernel that reads outside of the slice shows it.
        wide = x.new_full((n, h + 2, w + 3, c + 1), float("nan")).permute(0, 3, 1, 2)
        wide[:, :c, 1:-1, 1:-2] = x
        return wide[:, :c, 1:-1, 1:-2]
    if layout == "expanded":
        return x[:1, :1, :1, :1].expand(x.shape)
    return x.contiguous(memory_format=torch.channels_last)


def guarded(x: torch.Tensor, band: int = 4096) -> torch.Tensor:
    """``x`` with its strides in a buffer that has ``band`` NaN on either side."""
    span = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    buffer = x.new_full((span + 2 * band,), float("nan"))
    return buffer.as_strided(x.shape, x.stride(), band).copy_(x)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill uninitialised memory with NaN, so that results that were never written show."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all() and torch.ones(1).new_empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def numpy_instance_norm(x, act="none", slope=0.2, eps=1e-5, **around) -> np.ndarray:
    """Instance norm in fp64 from its definition; arguments as ``instance_norm_ref``."""
    x = np.asarray(x, np.float64)
    xhat = (x - x.mean((2, 3), keepdims=True)) / np.sqrt(x.var((2, 3), keepdims=True) + eps)
    weight, bias = (around.get(name) for name in ("weight", "bias"))
    z = xhat if weight is None else xhat * np.asarray(weight)[:, None, None]
    z = z if bias is None else z + np.asarray(bias)[:, None, None]
    residual = around.get("residual")
    z = z if residual is None else z + np.asarray(residual)
    if act == "relu" or around.get("residual_relu"):
        z = np.maximum(z, 0)
    elif act == "leaky_relu":
        z = np.where(z > 0, z, slope * z)
    return numpy_pad(z, around.get("pad", 0))


def numpy_pad(x: np.ndarray, pad: int) -> np.ndarray:
    """Reflection padding of (N, C, H, W)."""
    return np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="reflect")


def numpy_fold(dy: np.ndarray, pad: int) -> np.ndarray:
    """Gradient of reflection padding: every pixel of dy added where it came from."""
    n, c, height, width = dy.shape
    h, w = height - 2 * pad, width - 2 * pad
    places = numpy_pad(np.arange(h * w).reshape(1, 1, h, w), pad).ravel()
    dx = np.zeros((n, c, h * w))
    np.add.at(dx, (slice(None), slice(None), places), dy.reshape(n, c, -1))
    return dx.reshape(n, c, h, w)


def numpy_instance_norm_grads(x, dy, act="none", slope=0.2, eps=1e-5, **around) -> dict:
    """Gradients of :func:`numpy_instance_norm` by name, from the formula of the paper."""
    x, dy = np.asarray(x, np.float64), np.asarray(dy, np.float64)
    g = numpy_fold(dy, around.pop("pad", 0))
    sign = numpy_instance_norm(x, act, slope, eps, **around)
    if act == "relu" or around.get("residual_relu"):
        g = g * (sign > 0)
    elif act == "leaky_relu":
        g = np.where(sign > 0, g, slope * g)
    std = np.sqrt(x.var((2, 3), keepdims=True) + eps)
    xhat = (x - x.mean((2, 3), keepdims=True)) / std
    weight = np.ones(x.shape[1]) if around.get("weight") is None else np.asarray(around["weight"])
    dxhat = g * weight[:, None, None]
    mean_g = dxhat.mean((2, 3), keepdims=True)
    mean_gx = (dxhat * xhat).mean((2, 3), keepdims=True)
    return {
        "x": (dxhat - mean_g - xhat * mean_gx) / std,
        "residual": g,
        "weight": (g * xhat).sum((0, 2, 3)),
        "bias": g.sum((0, 2, 3)),
    }


def run_under_interpreter(file: str) -> int:
    """Run the tests of ``file`` on a CPU under Triton's interpreter; returns how many passed."""
    env = dict(os.environ, TRITON_INTERPRET="1", PYTEST_ADDOPTS="")
    command = [sys.executable, "-m", "pytest", file, "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", "not cuda and not slow"],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])
