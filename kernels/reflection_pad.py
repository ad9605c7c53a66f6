"""Padding of images before a convolution without padding of its own.

Reflection repeats the pixels next to the border, not the border itself: for pad p,
``y[..., i, :] = x[..., abs(i - p), :]`` at the top, and likewise on the other three sides.

Backward folds: dx is the sum of the up to nine pixels of dy that show the same pixel of x. Both
directions gather, so each result is written once and the same input gives the same bits.

Layout: (N, C, H, W) in, (N, C, H + 2p, W + 2p) out, channels_last. Bytes: x read, y written; for
backward dy read, dx written.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from fastcyclegan.kernels.dispatch import (
    LARGEST,
    accumulator,
    check_image,
    check_rank,
    jit,
    next_power_of_2,
    on_device,
    tl,
    triton,
    use_triton,
)

PADDINGS = ("reflect", "replicate", "zero")


def pad_ref(x: torch.Tensor, pad: int, padding: str = "reflect") -> torch.Tensor:
    """Pad all four sides, in plain PyTorch.

    Args:
        x: (N, C, H, W).
        pad: pixels on each side; for ``reflect`` less than H and W.
        padding: ``reflect``, ``replicate`` or ``zero``.

    Returns:
        (N, C, H + 2 pad, W + 2 pad) in the dtype and memory format of ``x``.

    Raises:
        ValueError: an unknown ``padding``, or a reflection wider than the image.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r}: not one of {', '.join(PADDINGS)}")
    if padding == "reflect":
        check_reflection(x, pad)
    mode = "constant" if padding == "zero" else padding
    # CUDA's reflection pad gives NCHW whatever it is given
    nhwc = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    return F.pad(x, (pad, pad, pad, pad), mode=mode).contiguous(memory_format=layout)


def check_reflection(x: torch.Tensor, pad: int) -> None:
    """Raise ValueError unless ``pad`` pixels of ``x`` (N, C, H, W) can be reflected."""
    check_rank(x, "x")
    check_margin(x.shape[2:], pad)


def check_margin(size: Sequence[int], pad: int) -> None:
    """Raise ValueError unless ``pad`` pixels of an image of ``size`` (H, W) can be reflected."""
    if pad < 0:
        raise ValueError(f"pad={pad}: must not be negative")
    if pad >= min(size):
        found = " x ".join(str(n) for n in size)
        raise ValueError(f"a reflection of {pad} needs more than {pad} pixels, got {found}")


@jit
def reflect_index(i, size):
    """Index in [0, size) that a padded image shows at ``i`` in (-size, 2 size - 1)."""
    last = size - 1
    return last - tl.abs(last - tl.abs(i))


@jit
def _preimage(i, size, PAD: tl.constexpr, SIDE: tl.constexpr):
    """Padded index that shows ``i``: itself (SIDE 0), or reflected at the near or far border."""
    if SIDE == 0:
        padded = i + PAD
        shown = i >= 0
    elif SIDE == 1:
        padded = PAD - i
        shown = (i >= 1) & (i <= PAD)
    else:
        padded = 2 * (size - 1) - i + PAD
        shown = (i <= size - 2) & (i >= size - 1 - PAD)
    return padded, shown


@jit
def _fold_row(
    base,
    h,
    w,
    mask,
    H,
    W,
    stride_h,
    stride_w,
    ROW: tl.constexpr,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
):
    """Sum over the pixels that show (h, w) in the padded row that ``_preimage`` names."""
    row, row_shown = _preimage(h, H, PAD, ROW)
    row_base = base + (row.to(tl.int64) * stride_h)[:, None]
    row_mask = mask & row_shown[:, None]
    offs = ((w + PAD).to(tl.int64) * stride_w)[:, None]
    total = tl.load(row_base + offs, mask=row_mask, other=0.0).to(ACC)
    if PAD > 0:
        for side in tl.static_range(1, 3):
            col, col_shown = _preimage(w, W, PAD, side)
            offs = (col.to(tl.int64) * stride_w)[:, None]
            total += tl.load(row_base + offs, mask=row_mask & col_shown[:, None], other=0.0).to(ACC)
    return total


@jit
def fold_halo(
    base, h, w, mask, H, W, stride_h, stride_w, near_border, PAD: tl.constexpr, ACC: tl.constexpr
):
    """Gradient of the pixels (h, w), summed over all places of a padded dy that show them.

    ``base`` (1, BLOCK_C) points at pixel (0, 0) of the padded dy, ``h`` and ``w`` are (BLOCK_P,),
    ``mask`` (BLOCK_P, BLOCK_C). ``near_border`` may be false only if no h is reflected.
    """
    total = _fold_row(base, h, w, mask, H, W, stride_h, stride_w, 0, PAD, ACC)
    for row in tl.static_range(1, 3 if PAD > 0 else 1):
        if near_border:
            total += _fold_row(base, h, w, mask, H, W, stride_h, stride_w, row, PAD, ACC)
    return total


@jit
def _reflection_pad_fwd_kernel(
    x_ptr,  # (N, C, H, W), any strides
    y_ptr,  # (N, C, HP, WP), channels_last
    H,
    W,
    C,
    stride_xn,
    stride_xc,
    stride_xh,
    stride_xw,
    PAD: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    WP = W + 2 * PAD
    pixels = (H + 2 * PAD) * WP
    c_blocks = tl.cdiv(C, BLOCK_C)
    p_blocks = tl.cdiv(pixels, BLOCK_P)
    n = (pid // (c_blocks * p_blocks)).to(tl.int64)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_p = (pid // c_blocks % p_blocks) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = (offs_p < pixels)[:, None] & (offs_c < C)[None, :]
    h = reflect_index(offs_p // WP - PAD, H).to(tl.int64)
    w = reflect_index(offs_p % WP - PAD, W).to(tl.int64)
    x_base = x_ptr + n * stride_xn + offs_c.to(tl.int64)[None, :] * stride_xc
    x = tl.load(x_base + (h * stride_xh + w * stride_xw)[:, None], mask=mask)
    y_base = y_ptr + n * pixels * C + offs_c[None, :]
    tl.store(y_base + (offs_p.to(tl.int64) * C)[:, None], x, mask=mask)


@jit
def _reflection_pad_bwd_kernel(
    dy_ptr,  # (N, C, HP, WP), any strides
    dx_ptr,  # (N, C, H, W), channels_last
    H,
    W,
    C,
    stride_dyn,
    stride_dyc,
    stride_dyh,
    stride_dyw,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    pixels = H * W
    c_blocks = tl.cdiv(C, BLOCK_C)
    p_blocks = tl.cdiv(pixels, BLOCK_P)
    n = (pid // (c_blocks * p_blocks)).to(tl.int64)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    start = (pid // c_blocks % p_blocks) * BLOCK_P
    offs_p = start + tl.arange(0, BLOCK_P)
    mask = (offs_p < pixels)[:, None] & (offs_c < C)[None, :]
    near_border = (start // W <= PAD) | ((start + BLOCK_P - 1) // W >= H - 1 - PAD)
    base = dy_ptr + n * stride_dyn + offs_c.to(tl.int64)[None, :] * stride_dyc
    dx = fold_halo(
        base, offs_p // W, offs_p % W, mask, H, W, stride_dyh, stride_dyw, near_border, PAD, ACC
    )
    dx_base = dx_ptr + n * pixels * C + offs_c[None, :]
    dx = dx.to(dx_ptr.dtype.element_ty)
    tl.store(dx_base + (offs_p.to(tl.int64) * C)[:, None], dx, mask=mask)


def _config(channels: int, itemsize: int) -> dict[str, int]:
    """Block sizes by the number of channels and the bytes of an element."""
    block_c = min(next_power_of_2(channels), 128 // itemsize)
    # Two loads of 16 bytes per thread; with few channels each element has its own index arithmetic.
    elements = 4096 // itemsize if block_c * itemsize >= 64 else 512
    return {"BLOCK_P": elements // block_c, "BLOCK_C": block_c, "num_warps": 4}


def _grid(pixels: int, x: torch.Tensor, config: dict[str, int]) -> tuple[int]:
    blocks = triton.cdiv(pixels, config["BLOCK_P"]) * triton.cdiv(x.shape[1], config["BLOCK_C"])
    return (x.shape[0] * blocks,)


def check_pixels(x: torch.Tensor, pad: int) -> None:
    """Raise ValueError for an image with more than LARGEST pixels."""
    if (x.shape[2] + 2 * pad) * (x.shape[3] + 2 * pad) > LARGEST:
        raise ValueError(
            f'{tuple(x.shape)}: more than {LARGEST} pixels per image with pad={pad}: use impl="ref"'
        )


def _check(x: torch.Tensor, pad: int) -> None:
    check_image(x, "x")
    check_reflection(x, pad)
    check_pixels(x, pad)


def _padded_like(x: torch.Tensor, pad: int) -> torch.Tensor:
    n, c, h, w = x.shape
    shape = (n, c, h + 2 * pad, w + 2 * pad)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _launch_fwd(x: torch.Tensor, y: torch.Tensor, pad: int) -> None:
    _, c, h, w = x.shape
    config = _config(c, x.element_size())
    grid = _grid(y.shape[2] * y.shape[3], x, config)
    with on_device(x):
        _reflection_pad_fwd_kernel[grid](x, y, h, w, c, *x.stride(), PAD=pad, **config)


def _launch_bwd(dy: torch.Tensor, dx: torch.Tensor, pad: int) -> None:
    _, c, h, w = dx.shape
    config = _config(c, dy.element_size()) | {"PAD": pad, "ACC": accumulator(dy.dtype)}
    # Left to itself ptxas spills there (sm_100), to fit one more block on a multiprocessor.
    config["maxnreg"] = 128 if dy.dtype == torch.float16 else None
    grid = _grid(h * w, dx, config)
    with on_device(dy):
        _reflection_pad_bwd_kernel[grid](dy, dx, h, w, c, *dy.stride(), **config)


@torch.library.custom_op("fastcyclegan::reflection_pad_fwd", mutates_args=())
def _reflection_pad_fwd(x: torch.Tensor, pad: int) -> torch.Tensor:
    _check(x, pad)
    y = _padded_like(x, pad)
    if y.numel():
        _launch_fwd(x, y, pad)
    return y


@torch.library.custom_op("fastcyclegan::reflection_pad_bwd", mutates_args=())
def _reflection_pad_bwd(dy: torch.Tensor, pad: int) -> torch.Tensor:
    dx = _padded_like(dy, -pad)
    if dx.numel():
        _launch_bwd(dy, dx, pad)
    return dx


@_reflection_pad_fwd.register_fake
def _(x: torch.Tensor, pad: int) -> torch.Tensor:
    _check(x, pad)
    return _padded_like(x, pad)


@_reflection_pad_bwd.register_fake
def _(dy: torch.Tensor, pad: int) -> torch.Tensor:
    return _padded_like(dy, -pad)


def _setup_context(ctx, inputs, output) -> None:
    ctx.pad = inputs[1]


def _backward(ctx, dy):
    return _reflection_pad_bwd(dy, ctx.pad), None


_reflection_pad_fwd.register_autograd(_backward, setup_context=_setup_context)


def reflection_pad(x: torch.Tensor, pad: int, *, impl: str | None = None) -> torch.Tensor:
    """Reflect ``pad`` pixels on all four sides.

    Args:
        x: (N, C, H, W) of any layout; fp32, bf16, fp16 or fp64 for the kernels.
        pad: pixels on each side, less than H and W.
        impl: ``ref``, ``triton``, or None: Triton on CUDA, the reference elsewhere.

    Returns:
        (N, C, H + 2 pad, W + 2 pad) in the dtype of ``x``, channels_last.

    Raises:
        ValueError: a reflection wider than the image, a shape or ``impl`` that is not supported.
        TypeError: a dtype that the kernels lack.
        RuntimeError: kernels are needed and triton is not installed.
    """
    if use_triton(x, impl):
        return _reflection_pad_fwd(x, pad)
    return pad_ref(x, pad)
