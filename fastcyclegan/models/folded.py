"""Wide convolutions between few channels and many, with the kernel's columns folded into channels.

Matrix units pad channels to 16 or more, so that a KxK convolution from or to 3 channels wastes most
of its multiplications. As a Kx1 convolution from or to 3 K channels it computes the same sums: the
columns of the window become channels of the input (:func:`conv_from_few`), or of an output whose K
shifted parts are added up (:func:`conv_to_few`).
"""

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
    width = x.shape[3] - K + 1
    columns = torch.cat([x[..., j : j + width] for j in range(K)], dim=1)
    folded = weight.permute(0, 3, 1, 2).reshape(outputs, K * channels, K, 1)
    return F.conv2d(columns, folded, bias)


def conv_to_few(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``F.conv2d(x, weight, bias)`` for few output channels; arguments as above.

    The K parts are added up in at least fp32, and rounded once.
    """
    outputs, channels, K, _ = weight.shape
    width = x.shape[3] - K + 1
    folded = weight.permute(3, 0, 1, 2).reshape(K * outputs, channels, K, 1)
    parts = F.conv2d(x, folded).unflatten(1, (K, outputs))
    parts = parts.to(torch.promote_types(x.dtype, torch.float32))
    total = sum(parts[:, j, :, :, j : j + width] for j in range(K))
    if bias is not None:
        total = total + bias[:, None, None]
    return total.to(x.dtype).contiguous(memory_format=torch.channels_last)
