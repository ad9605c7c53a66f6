"""Pixel ranges: which numbers a pixel is while networks compute with it.

A generator's last layer decides the range of its output, and a loss can only compare images of one
range, so everything between reading an image and writing one has the same::

    tanh        black -1, white 1     last layer tanh
    linear255   black 0, white 255    last layer none: only written images are clamped
    tanh255     black 0, white 255    last layer (tanh + 1) * 127.5
"""

from typing import NamedTuple


class PixelRange(NamedTuple):
    """One of the ranges.

    Attributes:
        scale, offset, factor: a byte x becomes (scale * x + offset) * factor, in which only the
            last multiplication rounds.
        centre: the value of middle grey.
        half: what lies between middle grey and white.
    """

    scale: float
    offset: float
    factor: float
    centre: float
    half: float


_RAW = PixelRange(1.0, 0.0, 1.0, 127.5, 127.5)
PIXEL_RANGES = {
    "tanh": PixelRange(2.0, -255.0, 1 / 255, 0.0, 1.0),
    "linear255": _RAW,
    "tanh255": _RAW,
}
