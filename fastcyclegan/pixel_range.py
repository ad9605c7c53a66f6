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
        zero, scale: a byte x becomes (x - zero) * scale, in which only the product rounds.
        centre: the value of middle grey.
        half: what lies between middle grey and white.
    """

    zero: float
    scale: float
    centre: float
    half: float


_RAW = PixelRange(0.0, 1.0, 127.5, 127.5)
PIXEL_RANGES = {
    "tanh": PixelRange(127.5, 2 / 255, 0.0, 1.0),
    "linear255": _RAW,
    "tanh255": _RAW,
}
