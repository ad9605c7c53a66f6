"""Random crop, horizontal flip and normalisation of uint8 images in one flat pixel buffer.

    y[n, c, i, j] = (pixels[offset[n] + (top[n] + i) * width[n] + left[n] + j', c] - zero) * scale
    with j' = w - 1 - j where flip[n], else j; then reflect_pad(y, pad).

zero 127.5 and scale 2 / 255 make x / 127.5 - 1 of it, written so that only the last multiplication
rounds: PyTorch divides float32 by 127.5 on CPUs but multiplies by a rounded reciprocal on GPUs, and
the two differ in the last bit. zero 0 and scale 1 leave 0 .. 255.

Layout: y is channels_last, and a program writes a run of its memory whatever the channels. Reads
N*h*w*C bytes, one at a time since windows begin at any byte; writes N*C*(h+2pad)*(w+2pad) elements.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcyclegan.kernels.dispatch import (
    DTYPES,
    LARGEST,
    accumulator,
    jit,
    on_device,
    tl,
    use_triton,
)
from fastcyclegan.kernels.reflection_pad import check_margin, pad_ref, reflect_index

# To [-1, 1].
ZERO, SCALE = 127.5, 2 / 255
PLAN = ("offset", "width", "top", "left", "flip")


def crop_ref(
    pixels: Tensor,
    offset: Tensor,
    width: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: tuple[int, int],
) -> Tensor:
    """Cut one window out of each of N images and flip it where asked.

    Args:
        pixels: (P, C) uint8, all images one after the other, each row by row.
        offset: (N,) int64, row of ``pixels`` where the image begins.
        width: (N,) int64, width of the image in pixels.
        top, left: (N,) int64, upper left corner of the window in pixels.
        flip: (N,) bool, mirror the window left to right.
        size: (h, w) of the window. It must lie inside the image; this is not checked.

    Returns:
        (N, h, w, C) uint8, contiguous, on the device of ``pixels``.
    """
    h, w = size
    rows = top[:, None] + torch.arange(h, device=pixels.device)
    cols = torch.arange(w, device=pixels.device)
    cols = left[:, None] + torch.where(flip[:, None], w - 1 - cols, cols)
    index = (offset[:, None] + rows * width[:, None])[:, :, None] + cols[:, None, :]
    return pixels[index]


def normalise_ref(
    x: Tensor, dtype: torch.dtype = torch.float32, zero: float = ZERO, scale: float = SCALE
) -> Tensor:
    """uint8 to (x - zero) * scale, same shape, rounded once, then to ``dtype``.

    Computed in float64 for float64, else in float32. By default 0 gives exactly -1 and 255
    exactly 1.
    """
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return ((x.to(compute) - zero) * scale).to(dtype)


def augment_ref(
    pixels: Tensor,
    offset: Tensor,
    width: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    *,
    zero: float = ZERO,
    scale: float = SCALE,
    pad: int = 0,
) -> Tensor:
    """Crop, flip, normalise and pad in plain PyTorch; the arguments are those of :func:`augment`.

    Returns:
        (N, C, h + 2 pad, w + 2 pad) of ``dtype``, channels_last.
    """
    windows = crop_ref(pixels, offset, width, top, left, flip.bool(), size)
    y = normalise_ref(windows, dtype, zero, scale).permute(0, 3, 1, 2)
    return pad_ref(y, pad) if pad else y


@jit
def _augment_kernel(
    pixels_ptr,  # (P, C) uint8
    offset_ptr,  # (N,) int64
    width_ptr,  # (N,) int64
    top_ptr,  # (N,) int64
    left_ptr,  # (N,) int64
    flip_ptr,  # (N,) bool or int64
    y_ptr,  # (N, C, h + 2 PAD, w + 2 PAD), channels_last
    h,
    w,
    units,  # ALIGN elements of y each, in one image
    C: tl.constexpr,
    PAD: tl.constexpr,
    ZERO: tl.constexpr,
    SCALE: tl.constexpr,
    ACC: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pid = tl.program_id(0)
    blocks = tl.cdiv(units * ALIGN, BLOCK)
    n = (pid // blocks).to(tl.int64)
    offs = (pid % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < units * ALIGN
    WP = w + 2 * PAD
    i = reflect_index(offs // C // WP - PAD, h)
    j = reflect_index(offs // C % WP - PAD, w)
    j = tl.where(tl.load(flip_ptr + n) != 0, w - 1 - j, j)
    width = tl.load(width_ptr + n)
    corner = tl.load(offset_ptr + n) + tl.load(top_ptr + n) * width + tl.load(left_ptr + n)
    x = tl.load(pixels_ptr + (corner + i * width + j) * C + offs % C, mask=mask, other=0)
    y = (x.to(ACC) - ZERO) * SCALE
    tl.store(y_ptr + n * units * ALIGN + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


def _config(elements: int, itemsize: int) -> dict[str, int]:
    """Block size by the bytes of an element, and the power of two that divides an image of y."""
    # Stores of 16 bytes per thread.
    return {
        "ALIGN": min(16, elements & -elements),
        "BLOCK": 4 * 32 * 16 // itemsize,
        "num_warps": 4,
    }


def _check(pixels, plan: dict[str, Tensor], h: int, w: int, dtype: torch.dtype, pad: int) -> None:
    if pixels.dtype != torch.uint8:
        raise TypeError(f'pixels is {pixels.dtype}; the kernel takes uint8: use impl="ref"')
    if pixels.dim() != 2 or not pixels.is_contiguous():
        raise ValueError(
            f"pixels must be (P, C) and contiguous, got {tuple(pixels.shape)} with strides "
            f'{pixels.stride()}: use .contiguous(), or impl="ref"'
        )
    if dtype not in DTYPES:
        names = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise TypeError(f'dtype={dtype}; the kernel writes {names}: use impl="ref"')
    n = plan["offset"].shape[:1]
    for name, t in plan.items():
        kinds = (torch.int64, torch.bool) if name == "flip" else (torch.int64,)
        if t.dtype not in kinds or t.dim() != 1 or t.shape != n or not t.is_contiguous():
            kind = " or ".join(str(k).removeprefix("torch.") for k in kinds)
            raise ValueError(
                f"{name} must be {kind}, contiguous and one value per image, got {t.dtype} "
                f'{tuple(t.shape)}: convert it, or use impl="ref"'
            )
        if t.device != pixels.device:
            raise ValueError(f"{name} is on {t.device}, pixels are on {pixels.device}")
    check_margin((h, w), pad)
    if (h + 2 * pad) * (w + 2 * pad) * pixels.shape[1] > LARGEST:
        raise ValueError(f'{h} x {w}: more than {LARGEST} values per image: use impl="ref"')


def _output(pixels, n: int, h: int, w: int, dtype: torch.dtype, pad: int) -> Tensor:
    return torch.empty(
        (n, pixels.shape[1], h + 2 * pad, w + 2 * pad),
        dtype=dtype,
        device=pixels.device,
        memory_format=torch.channels_last,
    )


def _launch(pixels, plan: dict[str, Tensor], h, w, zero, scale, pad, y) -> None:
    n, elements = len(y), y[0].numel()
    config = _config(elements, y.element_size())
    grid = (n * -(-elements // config["BLOCK"]),)
    with on_device(y):
        _augment_kernel[grid](
            *(pixels, *plan.values(), y),
            *(h, w, elements // config["ALIGN"]),
            C=y.shape[1],
            PAD=pad,
            ZERO=zero,
            SCALE=scale,
            ACC=accumulator(y.dtype),
            **config,
        )


@torch.library.custom_op("fastcyclegan::augment", mutates_args=())
def _augment(
    pixels: Tensor,
    offset: Tensor,
    width: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    h: int,
    w: int,
    dtype: torch.dtype,
    zero: float,
    scale: float,
    pad: int,
) -> Tensor:
    plan = dict(zip(PLAN, (offset, width, top, left, flip), strict=True))
    _check(pixels, plan, h, w, dtype, pad)
    y = _output(pixels, len(offset), h, w, dtype, pad)
    if y.numel():
        _launch(pixels, plan, h, w, zero, scale, pad, y)
    return y


@_augment.register_fake
def _(pixels, offset, width, top, left, flip, h, w, dtype, zero, scale, pad):
    plan = dict(zip(PLAN, (offset, width, top, left, flip), strict=True))
    _check(pixels, plan, h, w, dtype, pad)
    return _output(pixels, len(offset), h, w, dtype, pad)


def augment(
    pixels: Tensor,
    offset: Tensor,
    width: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    *,
    zero: float = ZERO,
    scale: float = SCALE,
    pad: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Windows of N images out of the resident buffer, as a network takes them, in one kernel.

    Args:
        pixels: (P, C) uint8, all images one after the other, each row by row.
        offset: (N,) int64, row of ``pixels`` where the image begins.
        width: (N,) int64, width of the image in pixels.
        top, left: (N,) int64, upper left corner of the window in pixels.
        flip: (N,) bool or int64, mirror the window left to right where not 0.
        size: (h, w) of the window. It must lie inside the image; this is not checked.
        dtype: of the result; fp32, bf16, fp16 or fp64 from the kernel.
        zero, scale: the result is (x - zero) * scale; by default in [-1, 1].
        pad: pixels of reflection on each side, less than h and w.
        impl: ``ref``, ``triton``, or None: Triton on CUDA, the reference elsewhere.

    Returns:
        (N, C, h + 2 pad, w + 2 pad) of ``dtype``, channels_last.

    Raises:
        ValueError: a shape, layout, device or ``impl`` that is not supported, or a reflection
            wider than the window.
        TypeError: a dtype that the kernel lacks.
        RuntimeError: the kernel is needed and triton is not installed.
    """
    plan = (offset, width, top, left, flip)
    if use_triton(pixels, impl):
        return _augment(pixels, *plan, *size, dtype, zero, scale, pad)
    return augment_ref(pixels, *plan, size, dtype, zero=zero, scale=scale, pad=pad)
