"""A padded-pitch Triton convolution against cuDNN on the trunk layer (3x3, 256->256, 64x64).

The reflect-padded NHWC input (N, 66, 66, C) is read as a matrix of N*66*66 rows, so that filter tap
(r, s) is the row offset 66*r + s and both operands are plain 2-D boxes. Outputs keep the pitch of
66: the last 2 columns of each row of pixels are garbage. An image has 64*66 = 4224 output rows, 33
tiles of 128. The weight is (K, 3, 3, C) read as (K, 9*C): a channels_last weight as it lies.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bench.probes.timing import Body, Budget, interleaved_us

FPROP_CONFIGS = [  # BLOCK_M, BLOCK_N, BLOCK_K, num_stages, num_warps
    (128, 128, 64, 4, 8),
    (128, 128, 64, 3, 8),
    (128, 128, 64, 4, 4),
    (128, 128, 128, 3, 8),
    (128, 256, 64, 3, 8),
    (64, 256, 64, 4, 8),
    (64, 128, 64, 5, 4),
]
WGRAD_CONFIGS = [  # BLOCK_M, BLOCK_N, BLOCK_K, num_stages, num_warps, splits
    (128, 128, 64, 4, 8, 3),
    (128, 128, 64, 4, 8, 7),
    (128, 128, 64, 4, 4, 3),
]


@triton.jit
def _fprop_kernel(
    x_desc,  # (N*HP*WP, C)
    weight_desc,  # (K, 9*C)
    y_desc,  # (N*HP*WP, K)
    partial_ptr,  # (N*tiles, 2, K) fp32: sum and M2 about the tile's mean
    tiles,
    image_rows,
    WP: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STATS: tl.constexpr,
):
    pid_n = tl.program_id(0)
    pid_m = tl.program_id(1)
    first = (pid_m % tiles) * BLOCK_M
    base = (pid_m // tiles) * image_rows + first
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(9 * (C // BLOCK_K)):
        tap = step // (C // BLOCK_K)
        row = base + (tap // 3) * WP + tap % 3
        a = x_desc.load([row, (step % (C // BLOCK_K)) * BLOCK_K])
        b = weight_desc.load([pid_n * BLOCK_N, step * BLOCK_K])
        acc = tl.dot(a, b.T, acc)
    if STATS:
        valid = ((first + tl.arange(0, BLOCK_M)) % WP < W)[:, None]
        total = tl.sum(tl.where(valid, acc, 0.0), axis=0)
        mean = total / tl.sum(valid.to(tl.float32))
        centred = tl.where(valid, acc - mean[None, :], 0.0)
        offs_k = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(partial_ptr + pid_m * 2 * K + offs_k, total)
        tl.store(partial_ptr + pid_m * 2 * K + K + offs_k, tl.sum(centred * centred, axis=0))
    y_desc.store([base, pid_n * BLOCK_N], acc.to(y_desc.dtype))


@triton.jit
def _wgrad_kernel(
    x_desc,  # (N*HP*WP, C)
    dy_desc,  # (N*HP*WP, K), zero in the garbage columns
    dweight_desc,  # (splits*K, 9*C) fp32
    chunks,  # row chunks of BLOCK_K in all images
    image_chunks,  # of which in one image
    image_rows,
    WP: tl.constexpr,
    C: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLITS: tl.constexpr,
):
    pid_m = tl.program_id(0)
    pid_n = tl.program_id(1)
    split = tl.program_id(2)
    tap = pid_n // (C // BLOCK_N)
    offset = (tap // 3) * WP + tap % 3
    column = (pid_n % (C // BLOCK_N)) * BLOCK_N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for chunk in range(chunks * split // SPLITS, chunks * (split + 1) // SPLITS):
        row = (chunk // image_chunks) * image_rows + (chunk % image_chunks) * BLOCK_K
        dy = dy_desc.load([row, pid_m * BLOCK_M])
        x = x_desc.load([row + offset, column])
        acc = tl.dot(dy.T, x, acc)
    dweight_desc.store([split * K + pid_m * BLOCK_M, pid_n * BLOCK_N], acc)


def _rows(t: torch.Tensor) -> torch.Tensor:
    """A channels_last (N, C, H, W) tensor as (N*H*W, C), without a copy."""
    return t.permute(0, 2, 3, 1).reshape(-1, t.shape[1])


def fprop(x, weight, y, partials, config: tuple, stats: bool) -> None:
    """Writes y (N, K, HP, WP), the outputs at the pitch of the padded x (N, C, HP, WP)."""
    block_m, block_n, block_k, num_stages, num_warps = config
    batch, channels, height, width = x.shape
    out_channels = weight.shape[0]
    tiles = (height - 2) * width // block_m
    flat_weight = weight.permute(0, 2, 3, 1).reshape(out_channels, -1)
    _fprop_kernel[(out_channels // block_n, batch * tiles)](
        TensorDescriptor.from_tensor(_rows(x), [block_m, block_k]),
        TensorDescriptor.from_tensor(flat_weight, [block_n, block_k]),
        TensorDescriptor.from_tensor(_rows(y), [block_m, block_n]),
        partials,
        tiles,
        height * width,
        WP=width,
        W=width - 2,
        C=channels,
        K=out_channels,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        STATS=stats,
        num_stages=num_stages,
        num_warps=num_warps,
    )


def wgrad(x, dy, dweight, config: tuple) -> torch.Tensor:
    """Fills dweight (splits, K, 9*C) fp32 and returns its sum; dy (N, K, HP, WP) at x's pitch."""
    block_m, block_n, block_k, num_stages, num_warps, splits = config
    batch, channels, height, width = x.shape
    out_channels = dy.shape[1]
    image_chunks = (height - 2) * width // block_k
    _wgrad_kernel[(out_channels // block_m, 9 * channels // block_n, splits)](
        TensorDescriptor.from_tensor(_rows(x), [block_k, block_n]),
        TensorDescriptor.from_tensor(_rows(dy), [block_k, block_m]),
        TensorDescriptor.from_tensor(dweight.view(-1, 9 * channels), [block_m, block_n]),
        batch * image_chunks,
        image_chunks,
        height * width,
        WP=width,
        C=channels,
        K=out_channels,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        SPLITS=splits,
        num_stages=num_stages,
        num_warps=num_warps,
    )
    return dweight.sum(0)


def _relative(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float(f"{float((got.double() - truth).norm() / truth.norm()):.3g}")


class _Case:
    """Inputs, poisoned outputs and fp32 truths for one batch size."""

    def __init__(self, batch: int, device: torch.device, tiny: bool) -> None:
        # The interpreter has no bf16 arithmetic to rely on, so the dry run takes fp32.
        dtype = torch.float32 if tiny else torch.bfloat16
        channels, side = (256, 10) if tiny else (256, 66)
        nhwc = {"memory_format": torch.channels_last}
        self.side = side
        self.x = torch.randn(batch, channels, side, side, device=device, dtype=dtype).to(**nhwc)
        weight = torch.randn(channels, channels, 3, 3, device=device) * (9 * channels) ** -0.5
        self.weight = weight.to(dtype).to(**nhwc)
        self.dy = torch.zeros_like(self.x, **nhwc)
        inner = (batch, channels, side - 2, side - 2)
        self.dy[:, :, : side - 2, : side - 2] = torch.randn(inner, device=device, dtype=dtype)
        self.dy_valid = self.dy[:, :, : side - 2, : side - 2].contiguous(**nhwc)
        self.y = torch.full_like(self.x, torch.nan, **nhwc)
        self.flop = 2 * batch * 9 * channels * channels * (side - 2) ** 2

    def truths(self) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.x.double()
        y = F.conv2d(x, self.weight.double())
        dweight = torch.nn.grad.conv2d_weight(x, self.weight.shape, self.dy_valid.double())
        return y, dweight

    def cudnn(self, mask: list[bool] | None) -> Body:
        if mask is None:
            return lambda: F.conv2d(self.x, self.weight)
        one, zero = [1, 1], [0, 0]
        return lambda: torch.ops.aten.convolution_backward(
            self.dy_valid, self.x, self.weight, None, one, zero, one, False, zero, 1, mask
        )


def _fprop_row(case: _Case, config: tuple, truth: torch.Tensor) -> tuple[dict, dict[str, Body]]:
    inside = case.side - 2
    tiles = case.x.shape[0] * inside * case.side // config[0]
    partials = torch.full((tiles, 2, case.x.shape[1]), torch.nan, device=case.x.device)
    case.y.fill_(torch.nan)
    fprop(case.x, case.weight, case.y, partials, config, True)
    sums = partials[:, 0].view(case.x.shape[0], -1, case.x.shape[1]).sum(1)
    errors = {
        "y_error": _relative(case.y[:, :, :inside, :inside], truth),
        "sum_error": _relative(sums, truth.sum((2, 3))),
    }
    run = partial(fprop, case.x, case.weight, case.y, partials, config)
    return errors, {
        f"fprop {config}": lambda: run(False),
        f"fprop+stats {config}": lambda: run(True),
    }


def _wgrad_row(case: _Case, config: tuple, truth: torch.Tensor) -> tuple[dict, dict[str, Body]]:
    channels = case.x.shape[1]
    dweight = torch.full((config[-1], channels, 9 * channels), torch.nan, device=case.x.device)
    got = wgrad(case.x, case.dy, dweight, config)
    want = truth.permute(0, 2, 3, 1).reshape(channels, -1)
    run = partial(wgrad, case.x, case.dy, dweight, config)
    return {"dweight_error": _relative(got, want)}, {f"wgrad {config}": run}


def flat_conv(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Error against fp64 and us of each configuration, beside cuDNN's fprop, dgrad and wgrad."""
    section: dict = {"rows": [], "errors": {}, "failed": {}}
    for batch in (2,) if tiny else (2, 1, 4, 8):
        if budget.left() < 30:
            break
        case = _Case(batch, device, tiny)
        truth_y, truth_dweight = case.truths()
        bodies = {
            "cudnn fprop": case.cudnn(None),
            "cudnn dgrad": case.cudnn([True, False, False]),
            "cudnn wgrad": case.cudnn([False, True, False]),
        }
        jobs = [(_fprop_row, c, truth_y) for c in FPROP_CONFIGS]
        jobs += [(_wgrad_row, c, truth_dweight) for c in WGRAD_CONFIGS]
        for make, config, truth in _small(jobs) if tiny else jobs:
            label = f"{make.__name__} {config} N={batch}"
            try:
                section["errors"][label], more = make(case, config, truth)
                bodies |= more
            except Exception as error:
                section["failed"][label] = f"{type(error).__name__}: {str(error)[:200]}"
        for name, us in interleaved_us(bodies, device, repeats=1 if tiny else 15).items():
            rate = round(case.flop / us["median"] / 1e6, 1)
            section["rows"].append({"N": batch, "kernel": name, "us": us, "TFLOP_per_s": rate})
    return section


def _small(jobs: list[tuple]) -> list[tuple]:
    """Two jobs whose tiles fit the dry run's 8 x 10 outputs."""
    fprop_job, wgrad_job = jobs[0], jobs[-1]
    return [
        (fprop_job[0], (16, 128, 64, 2, 4), fprop_job[2]),
        (wgrad_job[0], (128, 128, 16, 2, 4, 2), wgrad_job[2]),
    ]
