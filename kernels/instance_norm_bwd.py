"""Backward of instance normalisation; see ``instance_norm.py`` for the maths and the layout.

With g the gradient in front of the activation (halo folded, skip gradient added, mask applied)::

    dx = rstd * weight * (g - sum(g) / HW - xhat * sum(g * xhat) / HW)
    dresidual = g,   dweight = sum(g * xhat over n, h, w),   dbias = sum(g over n, h, w)

The first kernel leaves partial sums for each run of pixels. They are linear in dy, so it runs over
the padded pixels and needs no fold. The second adds them up in a fixed order and writes dx.
"""

from __future__ import annotations

import torch

from fastcyclegan.kernels.dispatch import (
    accumulator,
    jit,
    next_power_of_2,
    on_device,
    tl,
    wide_dtype,
)
from fastcyclegan.kernels.norm_config import (
    Config,
    apply_config,
    bounds_of,
    reduce_config,
    runs_of,
    split,
)
from fastcyclegan.kernels.reflection_pad import fold_halo, reflect_index


@jit
def activate(z, ACT: tl.constexpr, SLOPE: tl.constexpr):
    """act(z); NaN stays."""
    if ACT == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACT == "leaky_relu":
        z = tl.where(z <= 0, z * SLOPE, z)
    return z


@jit
def _mask_grad(
    g, xhat, weight_ptr, bias_ptr, y_ptrs, offs_c, mask, C, ACT: tl.constexpr, SLOPE: tl.constexpr
):
    """The gradient in front of the activation; its sign from y if there is one, else from xhat."""
    if ACT != "none":
        if y_ptrs is not None:
            z = tl.load(y_ptrs, mask=mask, other=0.0).to(g.dtype)
        else:
            z = xhat
            if weight_ptr is not None:
                z *= tl.load(weight_ptr + offs_c, mask=offs_c < C, other=0.0).to(g.dtype)[None, :]
            if bias_ptr is not None:
                z += tl.load(bias_ptr + offs_c, mask=offs_c < C, other=0.0).to(g.dtype)[None, :]
        low = g * SLOPE if ACT == "leaky_relu" else tl.zeros_like(g)
        g = tl.where(z <= 0, low, g)
    return g


@jit
def _instance_norm_bwd_sums_kernel(
    dy_ptr,  # (N, C, H + 2 PAD, W + 2 PAD), channels next to each other
    dskip_ptr,  # (N, C, H, W), channels next to each other, or None
    x_ptr,  # (N, C, H, W), channels_last
    y_ptr,  # (N, C, H + 2 PAD, W + 2 PAD), channels_last, or None
    mean_ptr,  # (N, C)
    rstd_ptr,  # (N, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    sum_g_ptr,  # (N, tiles, C): sum of g over each chunk
    sum_gx_ptr,  # (N, tiles, C): sum of g * xhat
    H,
    W,
    C,
    tiles,
    tile_pixels,
    stride_dyn,
    stride_dyh,
    stride_dyw,
    stride_dsn,
    stride_dsh,
    stride_dsw,
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    # The sums are linear in dy: running over the padded pixels needs no fold.
    pid = tl.program_id(0)
    WP = W + 2 * PAD
    pixels = (H + 2 * PAD) * WP
    c_blocks = tl.cdiv(C, BLOCK_C)
    tile = pid // c_blocks % tiles
    n = (pid // (c_blocks * tiles)).to(tl.int64)
    start, end = bounds_of(tile, tile_pixels, pixels)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    mean = tl.load(mean_ptr + n * C + offs_c, mask=mask_c, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + n * C + offs_c, mask=mask_c, other=0.0)[None, :]
    x_base = x_ptr + n * H * W * C + offs_c[None, :]
    sum_g = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    sum_gx = tl.zeros((BLOCK_P, BLOCK_C), ACC)
    for p in range(start, end, BLOCK_P * UNROLL):
        for j in tl.static_range(UNROLL):
            offs_p = p + j * BLOCK_P + tl.arange(0, BLOCK_P)
            row = (offs_p // WP).to(tl.int64)
            col = (offs_p % WP).to(tl.int64)
            mask = (offs_p < end)[:, None] & mask_c[None, :]
            h = reflect_index(row - PAD, H)
            w = reflect_index(col - PAD, W)
            x = tl.load(x_base + ((h * W + w) * C)[:, None], mask=mask, other=0.0).to(ACC)
            offs = (n * stride_dyn + row * stride_dyh + col * stride_dyw)[:, None]
            g = tl.load(dy_ptr + offs + offs_c[None, :], mask=mask, other=0.0).to(ACC)
            if dskip_ptr is not None:
                inside = mask & ((h == row - PAD) & (w == col - PAD))[:, None]
                offs = (n * stride_dsn + h * stride_dsh + w * stride_dsw)[:, None]
                g += tl.load(dskip_ptr + offs + offs_c[None, :], mask=inside, other=0.0).to(ACC)
            y_ptrs = None
            if y_ptr is not None:
                y_ptrs = y_ptr + ((n * pixels + offs_p) * C)[:, None] + offs_c[None, :]
            xhat = (x - mean) * rstd
            g = _mask_grad(g, xhat, weight_ptr, bias_ptr, y_ptrs, offs_c, mask, C, ACT, SLOPE)
            sum_g += g
            # Lanes beyond the end have g = 0, but an xhat of -mean * rstd that may be infinite.
            sum_gx += tl.where(mask, g * xhat, 0.0)
    offs = (n * tiles + tile) * C + offs_c
    tl.store(sum_g_ptr + offs, tl.sum(sum_g, 0), mask=mask_c)
    tl.store(sum_gx_ptr + offs, tl.sum(sum_gx, 0), mask=mask_c)


@jit
def _total(part_ptr, n, offs_c, C, tiles, BLOCK_T: tl.constexpr):
    """The sum of a sample's partial sums, (BLOCK_C,)."""
    t = tl.arange(0, BLOCK_T)
    offs = ((n * tiles + t) * C)[:, None] + offs_c[None, :]
    mask = (t < tiles)[:, None] & (offs_c < C)[None, :]
    return tl.sum(tl.load(part_ptr + offs, mask=mask, other=0.0), 0)


@jit
def _load_block(
    x_base,
    dy_base,
    skip_base,
    p,
    end,
    mask_c,
    dims,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """x and the gradient behind the activation for BLOCK_P pixels from p."""
    H, W, C, stride_dyh, stride_dyw, stride_dsh, stride_dsw = dims
    offs_p = p + tl.arange(0, BLOCK_P)
    h = offs_p // W
    w = offs_p % W
    mask = (offs_p < end)[:, None] & mask_c[None, :]
    x = tl.load(x_base + (offs_p.to(tl.int64) * C)[:, None], mask=mask, other=0.0)
    near_border = (p < end) & ((p // W <= PAD) | ((p + BLOCK_P - 1) // W >= H - 1 - PAD))
    g = fold_halo(dy_base, h, w, mask, H, W, stride_dyh, stride_dyw, near_border, PAD, ACC)
    if skip_base is not None:
        offs = h.to(tl.int64) * stride_dsh + w.to(tl.int64) * stride_dsw
        g += tl.load(skip_base + offs[:, None], mask=mask, other=0.0).to(ACC)
    return x, g


@jit
def _instance_norm_bwd_kernel(
    dy_ptr,  # (N, C, H + 2 PAD, W + 2 PAD), channels next to each other
    dskip_ptr,  # (N, C, H, W), channels next to each other, or None
    x_ptr,  # (N, C, H, W), channels_last
    y_ptr,  # (N, C, H + 2 PAD, W + 2 PAD), channels_last, or None
    mean_ptr,  # (N, C)
    rstd_ptr,  # (N, C)
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    part_g_ptr,  # (N, tiles, C)
    part_gx_ptr,  # (N, tiles, C)
    dx_ptr,  # (N, C, H, W), channels_last
    dresidual_ptr,  # (N, C, H, W), channels_last, or None
    sums_ptr,  # (2, N, C): sum of g * xhat and of g over a sample, or None
    N,
    H,
    W,
    C,
    tiles,
    chunk,  # pixels of one program
    stride_dyn,
    stride_dyh,
    stride_dyw,
    stride_dsn,
    stride_dsh,
    stride_dsw,
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    HW, WP = H * W, W + 2 * PAD
    chunks = runs_of(HW, chunk)
    c_blocks = tl.cdiv(C, BLOCK_C)
    n = (pid // (c_blocks * chunks)).to(tl.int64)
    start, end = bounds_of(pid // c_blocks % chunks, chunk, HW)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    dy_base = dy_ptr + n * stride_dyn + offs_c[None, :]
    skip_base = dskip_ptr
    if dskip_ptr is not None:
        skip_base = dskip_ptr + n * stride_dsn + offs_c[None, :]
    x_base = x_ptr + n * HW * C + offs_c[None, :]
    mean = tl.load(mean_ptr + n * C + offs_c, mask=mask_c, other=0.0)[None, :]
    rstd = tl.load(rstd_ptr + n * C + offs_c, mask=mask_c, other=0.0)[None, :]
    # A block ahead, so that it is on its way while the sums are added up.
    dims = (H, W, C, stride_dyh, stride_dyw, stride_dsh, stride_dsw)
    x, g = _load_block(x_base, dy_base, skip_base, start, end, mask_c, dims, PAD, ACC, BLOCK_P)
    sum_g = _total(part_g_ptr, n, offs_c, C, tiles, BLOCK_T)
    sum_gx = _total(part_gx_ptr, n, offs_c, C, tiles, BLOCK_T)
    if sums_ptr is not None:
        first = mask_c & (start == 0)
        tl.store(sums_ptr + n * C + offs_c, sum_gx, mask=first)
        tl.store(sums_ptr + (N + n) * C + offs_c, sum_g, mask=first)
    mean_g, mean_gx = (sum_g / HW)[None, :], (sum_gx / HW)[None, :]
    scale = rstd
    if weight_ptr is not None:
        scale = rstd * tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0).to(ACC)[None, :]
    for p in range(start, end, BLOCK_P):
        offs_p = p + tl.arange(0, BLOCK_P)
        mask = (offs_p < end)[:, None] & mask_c[None, :]
        offs = ((n * HW + offs_p) * C)[:, None] + offs_c[None, :]
        y_ptrs = None
        if y_ptr is not None:
            q = n * (H + 2 * PAD) * WP + (offs_p // W + PAD) * WP + offs_p % W + PAD
            y_ptrs = y_ptr + (q * C)[:, None] + offs_c[None, :]
        xhat = (x.to(ACC) - mean) * rstd
        g = _mask_grad(g, xhat, weight_ptr, bias_ptr, y_ptrs, offs_c, mask, C, ACT, SLOPE)
        dx = scale * (g - mean_g - xhat * mean_gx)
        tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if dresidual_ptr is not None:
            tl.store(dresidual_ptr + offs, g.to(dx_ptr.dtype.element_ty), mask=mask)
        x, g = _load_block(
            x_base, dy_base, skip_base, p + BLOCK_P, end, mask_c, dims, PAD, ACC, BLOCK_P
        )


def dense_channels(t: torch.Tensor) -> torch.Tensor:
    """``t`` (N, C, H, W) itself if its channels lie next to each other, else a copy."""
    if t.shape[1] == 1 or t.stride(1) == 1:
        return t
    return t.contiguous(memory_format=torch.channels_last)


def spatial_strides(t: torch.Tensor | None) -> tuple[int, int, int]:
    """Strides of n, h and w; zeros for None."""
    return (0, 0, 0) if t is None else (t.stride(0), t.stride(2), t.stride(3))


def _strides(dy, dskip) -> tuple[int, ...]:
    return (*spatial_strides(dy), *spatial_strides(dskip))


def launch_sums(
    dy, dskip, x, y, mean, rstd, weight, bias, act, slope, pad, config: Config
) -> torch.Tensor:
    """(2, N, tiles, C): the partial sums of g and of g * xhat."""
    n, c, h, w = x.shape
    groups = n * -(-c // config.block_c)
    tiles, tile_pixels = split((h + 2 * pad) * (w + 2 * pad), groups, config)
    part = torch.empty((2, n, tiles, c), dtype=mean.dtype, device=x.device)
    with on_device(x):
        _instance_norm_bwd_sums_kernel[(groups * tiles,)](
            *(dy, dskip, x, y, mean, rstd, weight, bias, part[0], part[1]),
            *(h, w, c, tiles, tile_pixels),
            *_strides(dy, dskip),
            ACT=act,
            SLOPE=slope,
            PAD=pad,
            ACC=accumulator(x.dtype),
            UNROLL=config.unroll,
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            # Left to itself ptxas spills there (sm_100), to fit one more block.
            maxnreg=128 if act == "leaky_relu" and x.dtype == torch.float16 else None,
        )
    return part


def launch_apply(
    dy, dskip, x, y, mean, rstd, weight, bias, act, slope, pad, part, dx, dresidual, sums
) -> None:
    """Write dx, dresidual and the sums over each sample, from :func:`launch_sums`'s ``part``."""
    n, c, h, w = x.shape
    tiles = part.shape[2]
    config = apply_config(c, x.element_size())
    groups = n * -(-c // config.block_c)
    chunks, chunk = split(h * w, groups, config)
    with on_device(x):
        _instance_norm_bwd_kernel[(groups * chunks,)](
            *(dy, dskip, x, y, mean, rstd, weight, bias, part[0], part[1]),
            *(dx, dresidual, sums),
            *(n, h, w, c, tiles, chunk),
            *_strides(dy, dskip),
            ACT=act,
            SLOPE=slope,
            PAD=pad,
            ACC=accumulator(x.dtype),
            BLOCK_T=next_power_of_2(tiles),
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            # Left to itself ptxas spills there (sm_80; with weights sm_90, sm_120), to fit one more
            # block on a multiprocessor.
            maxnreg=128 if (x.dtype == torch.float32 if pad else weight is not None) else None,
        )


def _launch(dy, dskip, x, y, mean, rstd, weight, bias, act, slope, pad, dx, dresidual, sums):
    given = (dy, dskip, x, y, mean, rstd, weight, bias, act, slope, pad)
    part = launch_sums(*given, reduce_config(x.shape[1], x.element_size()))
    launch_apply(*given, part, dx, dresidual, sums)


def _outputs(x, weight, bias, has_residual):
    """dx, dresidual, dweight and dbias, uninitialised; empty (0,) where there is none."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    dresidual = torch.empty_like(dx) if has_residual else x.new_empty(0)
    dweight = x.new_empty(0) if weight is None else torch.empty_like(weight)
    dbias = x.new_empty(0) if bias is None else torch.empty_like(bias)
    return dx, dresidual, dweight, dbias


@torch.library.custom_op("fastcyclegan::instance_norm_bwd", mutates_args=())
def instance_norm_bwd(
    dy: torch.Tensor,
    dskip: torch.Tensor | None,
    x: torch.Tensor,
    y: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    act: str,
    slope: float,
    has_residual: bool,
    pad: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(dx, dresidual, dweight, dbias); those that there are none of are empty.

    Args:
        dy: (N, C, H + 2 pad, W + 2 pad), gradient of the padded output, any layout.
        dskip: (N, C, H, W), gradient of its interior from elsewhere.
        x, weight, bias, act, slope, pad: as given to the forward op.
        y: (N, C, H + 2 pad, W + 2 pad), the output, where a ReLU follows the residual's addition.
        mean, rstd: (N, C), from the forward op.
    """
    dx, dresidual, dweight, dbias = _outputs(x, weight, bias, has_residual)
    n, c = x.shape[:2]
    affine = weight is not None or bias is not None
    sums = x.new_zeros((2, n, c), dtype=wide_dtype(x.dtype)) if affine else None
    if x.numel():
        dy = dense_channels(dy)
        dskip = None if dskip is None else dense_channels(dskip)
        act = "relu" if y is not None else act
        grad_residual = dresidual if has_residual else None
        _launch(dy, dskip, x, y, mean, rstd, weight, bias, act, slope, pad, dx, grad_residual, sums)
    if weight is not None:
        dweight.copy_(sums[0].sum(0))
    if bias is not None:
        dbias.copy_(sums[1].sum(0))
    return dx, dresidual, dweight, dbias


@instance_norm_bwd.register_fake
def _(dy, dskip, x, y, mean, rstd, weight, bias, act, slope, has_residual, pad):
    return _outputs(x, weight, bias, has_residual)
