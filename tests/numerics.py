"""What the tests of the ops share: tolerances, layouts, guarded memory, Triton's interpreter.

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
from unittest import mock

import numpy as np
import pytest
import torch

from fastcyclegan.kernels import norm_config
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
LAYOUTS = ("channels_last", "nchw", "sliced", "expanded")
ROOT = Path(__file__).resolve().parent.parent

# Where memory without a value comes from.
EMPTY = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))

# The kernels run on a GPU, or in a process of their own under Triton's interpreter.
if interpreted():
    DEVICES = [pytest.param("cpu", marks=pytest.mark.interpreter)]
    # It runs programs one after the other: 6 instead of hundreds.
    norm_config.PROGRAMS = 6
else:
    DEVICES = [pytest.param("cuda", marks=pytest.mark.cuda)]
on_devices = pytest.mark.parametrize("device", DEVICES)


def limit(truth: torch.Tensor, peer: torch.Tensor) -> float:
    """The largest error allowed for a result whose same-dtype reference is ``peer``."""
    if not truth.numel():
        return 0.0
    error = (peer.double() - truth).abs().max()
    # Integers have none.
    return float(2 * error + ALLOWANCE.get(peer.dtype, 0.0) * truth.abs().max())


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
        wide = x.new_full((n, h + 2, w + 3, c + 1), filling(x.dtype)).permute(0, 3, 1, 2)
        wide[:, :c, 1:-1, 1:-2] = x
        return wide[:, :c, 1:-1, 1:-2]
    if layout == "expanded":
        return x[:1, :1, :1, :1].expand(x.shape)
    return x.contiguous(memory_format=torch.channels_last)


class Fences:
    """Memory between two bands in which nothing may be written and which nobody may read.

    Triton's interpreter does not notice an access outside of a buffer; these bands do. Around
    inputs they are NaN, so that a read shows. Around what an op allocates they are a number, since
    what is written there comes from beyond its inputs and is NaN itself.
    """

    BAND = 4096

    def __init__(self) -> None:
        self.buffers: list[tuple[torch.Tensor, int, torch.Tensor]] = []

    def around(self, t: torch.Tensor) -> torch.Tensor:
        """A copy of ``t`` with its strides, between NaN."""
        return self._between(t, filling(t.dtype)).copy_(t)

    def empty(self, like: torch.Tensor) -> torch.Tensor:
        """A tensor with the shape, strides and dtype of ``like``, full of NaN, between ones."""
        return self._between(like, 1).fill_(filling(like.dtype))

    def _between(self, like: torch.Tensor, band: float) -> torch.Tensor:
        pairs = zip(like.shape, like.stride(), strict=True)
        span = sum((n - 1) * s for n, s in pairs) + 1 if like.numel() else 0
        options = {"dtype": like.dtype, "device": like.device}
        buffer = torch.full((span + 2 * self.BAND,), band, **options)
        self.buffers.append((buffer, span, buffer[:1].clone()))
        return buffer.as_strided(like.shape, like.stride(), self.BAND)

    @contextlib.contextmanager
    def allocations(self) -> Iterator[None]:
        """Whatever is allocated without a value inside, an op's results above all, has fences."""
        with contextlib.ExitStack() as patches:
            for owner, name in EMPTY:
                plain = getattr(owner, name)

                def fenced(*args, _plain=plain, **options):
                    return self.empty(_plain(*args, **options))

                patches.enter_context(mock.patch.object(owner, name, fenced))
            yield

    def check(self) -> None:
        """Fail if something was written into a band."""
        for buffer, span, value in self.buffers:
            bands = torch.cat((buffer[: self.BAND], buffer[self.BAND + span :]))
            clean = bands.isnan() if value.isnan() else bands == value
            assert clean.all(), f"{int((~clean).sum())} elements written outside of {span}"


def filling(dtype: torch.dtype) -> float | int | bool:
    """NaN, or the greatest value of a dtype that has none."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def run_under_interpreter(file: str) -> int:
    """Run the tests of ``file`` on a CPU under Triton's interpreter; returns how many passed."""
    env = dict(os.environ, TRITON_INTERPRET="1")
    command = [sys.executable, "-m", "pytest", file, "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-m", "interpreter"],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1], done.stdout[-2000:]
    return int(re.search(r"(\d+) passed", done.stdout)[1])
