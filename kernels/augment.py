"""Random crop, horizontal flip and normalisation of uint8 images in one flat pixel buffer.

    x = pixels[offset[n] + (top[n] + i) * width[n] + left[n] + j', c]
    y[n, c, i, j] = (2 * x - 255) / 255,  or x itself where pixels are 0 .. 255 for the networks
    with j' = w - 1 - j where flip[n], else j.

The first is x / 127.5 - 1, written so that only the last multiplication rounds: PyTorch divides
float32 by 127.5 on CPUs but multiplies by a rounded reciprocal on GPUs, and the two differ in the
last bit.
Reads N*h*w*C bytes, writes N*h*w*C elements. Output is channels_last.
"""

import torch
from torch import Tensor

from fastcyclegan.pixel_range import PIXEL_RANGES


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
    x: Tensor, dtype: torch.dtype = torch.float32, pixel_range: str = "tanh"
) -> Tensor:
    """uint8 0..255 to ``pixel_range``, same shape, rounded once, then to ``dtype``.

    (scale * x + offset) * factor with the constants of the range; for ``tanh`` (2x - 255) / 255,
    which gives exactly -1 for 0 and 1 for 255. Computed in float64 for float64, else in float32.
    """
    scale, offset, factor, *_ = PIXEL_RANGES[pixel_range]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    return ((scale * x.to(compute) + offset) * factor).to(dtype)


def augment_ref(
    pixels: Tensor,
    offset: Tensor,
    width: Tensor,
    top: Tensor,
    left: Tensor,
    flip: Tensor,
    size: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    pixel_range: str = "tanh",
) -> Tensor:
    """Crop, flip and normalise; the arguments are those of :func:`crop_ref`.

    Returns:
        (N, C, h, w) of ``dtype`` in ``pixel_range``, channels_last.
    """
    windows = crop_ref(pixels, offset, width, top, left, flip, size)
    return normalise_ref(windows, dtype, pixel_range).permute(0, 3, 1, 2)
