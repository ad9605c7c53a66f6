"""The last step of every generator: from a convolution's output to pixels of a range."""

import torch

from fastcyclegan.pixel_range import PIXEL_RANGES


def to_pixels(x: torch.Tensor, pixel_range: str) -> torch.Tensor:
    """``tanh``: tanh(x). ``tanh255``: (tanh(x) + 1) * 127.5. ``linear255``: (x + 1) * 127.5.

    The last has no end: nothing but its training keeps it near 0 .. 255. With its constants it
    begins in the middle of the range and moves with the learning rate that it has in [-1, 1]; a
    bias in front of it makes them no more than other units of the last layer's weights. Without
    them it begins at black and moves by 1/127 of that: 5 dB after 300 steps of the toy domains.

    Args:
        x: (N, C, H, W); the 0 .. 255 ranges are computed in at least fp32.
        pixel_range: one of PIXEL_RANGES.
    """
    if pixel_range == "tanh":
        return torch.tanh(x)
    *_, centre, half = PIXEL_RANGES[pixel_range]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = torch.tanh(wide) if pixel_range == "tanh255" else wide
    return (wide * half + centre).to(x.dtype)
