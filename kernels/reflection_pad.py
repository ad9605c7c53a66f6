"""Padding of images before a convolution without padding of its own.

Reflection repeats the pixels next to the border, not the border itself: for pad p,
``y[..., i, :] = x[..., abs(i - p), :]`` at the top, and likewise on the other three sides.

Layout: (N, C, H, W) in, (N, C, H + 2p, W + 2p) out, channels_last. Bytes: x read, y written.
"""

import torch
from torch.nn import functional as F

PADDINGS = ("reflect", "replicate", "zero")


def pad_ref(x: torch.Tensor, pad: int, padding: str = "reflect") -> torch.Tensor:
    """Pad all four sides, in plain PyTorch.

    Args:
        x: (N, C, H, W).
        pad: pixels on each side; for ``reflect`` less than H and W.
        padding: ``reflect``, ``replicate`` or ``zero``.

    Returns:
        (N, C, H + 2 pad, W + 2 pad) in the dtype of ``x``, channels_last.

    Raises:
        ValueError: an unknown ``padding``, or a reflection wider than the image.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding={padding!r}: not one of {', '.join(PADDINGS)}")
    if padding == "reflect" and pad >= min(x.shape[2:]):
        raise ValueError(f"a reflection of {pad} needs more than {pad} pixels, got {x.shape[2:]}")
    mode = "constant" if padding == "zero" else padding
    padded = F.pad(x, (pad, pad, pad, pad), mode=mode)
    return padded.contiguous(memory_format=torch.channels_last)
