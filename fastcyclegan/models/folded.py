"""Wide convolutions between few channels and many, with the kernel's columns folded into channels.

Matrix units pad channels to 16 or more, so that a KxK convolution from or to 3 channels wastes most
of its multiplications. As a Kx1 convolution from or to 3 K channels it computes the same sums: the
columns of the window become channels of the input (:func:`conv_from_few`), or of an output whose K
shifted parts are added up (:func:`conv_to_few`).

For an image x and parts p of K times as many channels::

    fold(x)[column, k] = x[column + k]            combine(p)[column] = sum_k p[column + K-1-k, k]

Each is the other's gradient, of what K - 1 columns of zeros were put on both sides of.
"""

from typing import Any

import torch
from torch.nn import functional as F


def conv_from_few(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``F.conv2d(x, weight, bias)`` for few input channels.

    Args:
        x: (N, C, H, W).
        weight: (O, C, K, K).
        bias: (O,) or None.

    Returns:
        (N, O, H-K+1, W-K+1).
    """
    outputs, channels, K, _ = weight.shape
    folded = weight.permute(0, 3, 1, 2).reshape(outputs, K * channels, K, 1)
    return F.conv2d(_Fold.apply(x, K), folded, bias)


def conv_to_few(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``F.conv2d(x, weight, bias)`` for few output channels; arguments as above.

    The K parts are added up in at least fp32, and rounded once.
    """
    outputs, channels, K, _ = weight.shape
    folded = weight.flip(3).permute(3, 0, 1, 2).reshape(K * outputs, channels, K, 1)
    total = _Combine.apply(F.conv2d(x, folded), K)
    if bias is not None:
        total = total + bias[:, None, None]
    return total.to(x.dtype).contiguous(memory_format=torch.channels_last)


class _Fold(torch.autograd.Function):
    """(N, C, H, W) to (N, K C, H, W-K+1)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, K: int) -> torch.Tensor:
        ctx.K = K
        n, channels, h, w = x.shape
        if not x.is_contiguous(memory_format=torch.channels_last):
            return torch.cat([x[..., k : k + w - K + 1] for k in range(K)], dim=1)
        # What stands in the columns of a window are neighbours in memory.
        rows = x.permute(0, 2, 3, 1).reshape(n, h, w * channels)
        return rows.unfold(2, K * channels, channels).contiguous().permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        dx = _Combine.apply(_widened(dy, ctx.K), ctx.K)
        return dx.to(dy.dtype).contiguous(memory_format=torch.channels_last), None


class _Combine(torch.autograd.Function):
    """(N, K C, H, W) to (N, C, H, W-K+1), in at least fp32."""

    @staticmethod
    def forward(ctx: Any, p: torch.Tensor, K: int) -> torch.Tensor:
        ctx.K, ctx.dtype = K, p.dtype
        width = p.shape[3] - K + 1
        wide = torch.promote_types(p.dtype, torch.float32)
        parts = p.unflatten(1, (K, -1))
        return sum(parts[:, k, :, :, K - 1 - k :][..., :width].to(wide) for k in range(K))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Fold.apply(_widened(dy.to(ctx.dtype), ctx.K), ctx.K), None


def _widened(x: torch.Tensor, K: int) -> torch.Tensor:
    """With K - 1 columns of zeros on both sides, in the layout of ``x``.

    ``F.pad`` of an NCHW view would leave channels_last.
    """
    pixels = F.pad(x.permute(0, 2, 3, 1), (0, 0, K - 1, K - 1))
    return pixels.permute(0, 3, 1, 2)
