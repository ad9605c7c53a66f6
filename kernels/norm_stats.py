"""Statistics of an image's channels, which the instance norm and the batch norm begin with.

Each program sums one run of pixels, shifted by a sample of its own, into (mean, M2); the runs are
combined by Chan's formula in a fixed order, so that neither a large mean nor the order of programs
matters. Nothing is accumulated by atomics.

Layout: x is channels_last. Reads x once.
"""

from __future__ import annotations

import torch

from fastcyclegan.kernels.dispatch import accumulator, jit, on_device, tl, wide_dtype
from fastcyclegan.kernels.norm_config import Config, bounds_of, split


@jit
def combine_runs(
    mean_ptr, m2_ptr, n, offs_c, HW, C, tiles, tile_pixels, BLOCK_T: tl.constexpr, ACC: tl.constexpr
):
    """(mean, M2) of each channel of sample n from its partial ones, by Chan's formula."""
    LANES: tl.constexpr = BLOCK_T // 4 if BLOCK_T > 32 else (8 if BLOCK_T > 8 else BLOCK_T)
    base = n * tiles * C + offs_c[None, :]
    mask_c = (offs_c < C)[None, :]
    lane = tl.arange(0, LANES)
    # Each lane adds up its few tiles as they come, shifted by its own first one.
    first = tl.load(
        mean_ptr + base + (lane * C)[:, None], mask=(lane < tiles)[:, None] & mask_c, other=0.0
    )
    count = tl.zeros((LANES, 1), ACC)
    s1 = tl.zeros_like(first)
    s2 = tl.zeros_like(first)
    for j in tl.static_range(BLOCK_T // LANES):
        t = lane + j * LANES
        mask = (t < tiles)[:, None] & mask_c
        offs = base + (t * C)[:, None]
        pixels = tl.minimum(tile_pixels, tl.maximum(HW - t * tile_pixels, 0))
        pixels = tl.where(t < tiles, pixels, 0).to(ACC)[:, None]
        delta = tl.where(mask, tl.load(mean_ptr + offs, mask=mask, other=0.0) - first, 0.0)
        count += pixels
        s1 += pixels * delta
        s2 += tl.load(m2_ptr + offs, mask=mask, other=0.0) + pixels * delta * delta
    some = tl.maximum(count, 1.0)
    m2 = tl.sum(s2 - s1 * (s1 / some), 0)
    # The squares of the lanes wait for the mean of all: about a lane that is unlike the rest they
    # would cancel, by as much as there are lanes.
    origin = tl.load(mean_ptr + n * tiles * C + offs_c, mask=offs_c < C, other=0.0)
    mask = (lane < tiles)[:, None] & mask_c
    delta = tl.where(mask, first - origin[None, :] + s1 / some, 0.0)
    shift = tl.sum(count * delta, 0) / HW
    delta = tl.where(mask, delta - shift[None, :], 0.0)
    m2 += tl.sum(count * delta * delta, 0)
    return origin + shift, tl.where(m2 < 0, 0.0, m2)


@jit
def _add_shifted(
    s1, s2, first, x_base, p, end, mask_c, C, SKIP: tl.constexpr, UNROLL: tl.constexpr
):
    """Add x - first and its square over UNROLL blocks of pixels from p, without the first SKIP."""
    BLOCK_P: tl.constexpr = s1.shape[0]
    for j in tl.static_range(SKIP, UNROLL):
        offs_p = p + j * BLOCK_P + tl.arange(0, BLOCK_P)
        mask = (offs_p < end)[:, None] & mask_c
        x = tl.load(x_base + (offs_p.to(tl.int64) * C)[:, None], mask=mask, other=0.0)
        shifted = tl.where(mask, x.to(first.dtype) - first, 0.0)
        s1 += shifted
        s2 += shifted * shifted
    return s1, s2


@jit
def _instance_norm_stats_kernel(
    x_ptr,  # (N, C, H, W), channels_last
    mean_ptr,  # (N, tiles, C): mean of each run of pixels
    m2_ptr,  # (N, tiles, C): sum of squares about that mean
    HW,
    C,
    tiles,
    tile_pixels,
    ACC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    c_blocks = tl.cdiv(C, BLOCK_C)
    tile = pid // c_blocks % tiles
    n = (pid // (c_blocks * tiles)).to(tl.int64)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = (offs_c < C)[None, :]
    start, end = bounds_of(tile, tile_pixels, HW)
    rows = start + tl.arange(0, BLOCK_P)
    x_base = x_ptr + n * HW * C + offs_c[None, :]
    # Each lane is shifted by its own first sample: then s2 is at most count times its true M2.
    first = tl.load(
        x_base + (rows.to(tl.int64) * C)[:, None], mask=(rows < end)[:, None] & mask_c, other=0.0
    ).to(ACC)
    s1 = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    s2 = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    # Outside of the loop, so that its loads are in flight together with that of the first.
    s1, s2 = _add_shifted(s1, s2, first, x_base, start, end, mask_c, C, 1, UNROLL)
    for p in range(start + BLOCK_P * UNROLL, end, BLOCK_P * UNROLL):
        s1, s2 = _add_shifted(s1, s2, first, x_base, p, end, mask_c, C, 0, UNROLL)
    count = tl.cdiv(tl.maximum(end - rows, 0), BLOCK_P).to(ACC)[:, None]
    some = tl.maximum(count, 1.0)
    lane_mean = first + s1 / some
    lane_m2 = s2 - s1 * (s1 / some)
    pixels = (end - start).to(ACC)
    mean = tl.sum(count * lane_mean, 0) / pixels
    delta = tl.where(count > 0, lane_mean - mean[None, :], 0.0)
    rest = tl.sum(count * delta, 0) / pixels
    m2 = tl.sum(lane_m2, 0) + tl.sum(count * delta * delta, 0) - rest * rest * pixels
    offs = (n * tiles + tile) * C + offs_c
    tl.store(mean_ptr + offs, mean + rest, mask=offs_c < C)
    tl.store(m2_ptr + offs, tl.where(m2 < 0, 0.0, m2), mask=offs_c < C)


def launch_stats(x: torch.Tensor, config: Config) -> tuple[torch.Tensor, int]:
    """(2, N, tiles, C): partial means and M2 of each run of pixels; and the pixels of a run."""
    n, c, h, w = x.shape
    groups = n * -(-c // config.block_c)
    tiles, tile_pixels = split(h * w, groups, config)
    part = torch.empty((2, n, tiles, c), dtype=wide_dtype(x.dtype), device=x.device)
    with on_device(x):
        _instance_norm_stats_kernel[(groups * tiles,)](
            *(x, part[0], part[1]),
            *(h * w, c, tiles, tile_pixels),
            ACC=accumulator(x.dtype),
            UNROLL=config.unroll,
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
        )
    return part, tile_pixels
