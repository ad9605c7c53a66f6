"""Preview pictures: what the networks make of a few fixed images."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastcyclegan.data.images import to_uint8, write_image

MAX_WIDTH = 2048
_SEPARATOR = 2
_MARGIN = 6
_SMALLEST_CELL = 16
_BACKGROUND = (32, 32, 32)
_TEXT = (235, 235, 235)


def save_preview(path: Path, rows: Mapping[str, Tensor], pixel_range: str = "tanh") -> None:
    """Write one picture: a row per entry, its label at the left, its images side by side.

    ``rows``: label to (N, C, H, W) float in ``pixel_range``, C 1, 3 or 4; N, C, H and W may differ
    between rows. Images are never enlarged; they are shrunk, and if need be the last ones left
    out, so that the picture is at most ``MAX_WIDTH`` pixels wide. Raises UserError when it cannot
    be written, ValueError when there is no image.
    """
    images = {label: to_uint8(x, pixel_range).cpu().numpy() for label, x in rows.items()}
    if not any(len(x) for x in images.values()):
        raise ValueError("a preview needs at least one image")
    font = _font(images)
    label_width = round(max(font.getlength(label) for label in images)) + 2 * _MARGIN
    columns, cell_width, scale = _layout(images, label_width)
    text_height = sum(font.getmetrics()) + _MARGIN
    heights = [max(round(x.shape[1] * scale), text_height) for x in images.values()]
    picture = Image.new(
        "RGB",
        (
            label_width + columns * (cell_width + _SEPARATOR),
            sum(heights) + _SEPARATOR * len(heights),
        ),
        _BACKGROUND,
    )
    draw, top = ImageDraw.Draw(picture), 0
    for (label, x), height in zip(images.items(), heights, strict=True):
        draw.text((_MARGIN, top + height / 2), label, fill=_TEXT, font=font, anchor="lm")
        for column, image in enumerate(x[:columns]):
            left = label_width + column * (cell_width + _SEPARATOR)
            picture.paste(_shrunk(image, scale), (left, top))
        top += height + _SEPARATOR
    write_image(path, np.asarray(picture))


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """uint8 (N, H, W, C) side by side, ``columns`` in a row: uint8 (H', W', C), C as it was.

    What lies between them is dark, or transparent where there is an alpha channel.
    """
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    step_y, step_x = height + _SEPARATOR, width + _SEPARATOR
    shape = rows * step_y - _SEPARATOR, min(n, columns) * step_x - _SEPARATOR, channels
    picture = np.full(shape, 0 if channels == 4 else _BACKGROUND[0], np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * step_y, i % columns * step_x
        picture[top : top + height, left : left + width] = image
    return picture


def _font(images: Mapping[str, np.ndarray]) -> ImageFont.FreeTypeFont:
    # In proportion to the images, because large pictures are looked at shrunk.
    tallest = max(x.shape[1] for x in images.values())
    return ImageFont.load_default(size=min(max(tallest // 10, 13), 26))


def _layout(images: Mapping[str, np.ndarray], label_width: int) -> tuple[int, int, float]:
    """(columns, width of a column in pixels, scale of the images)."""
    widest = max(x.shape[2] for x in images.values())
    room = MAX_WIDTH - label_width
    columns = max(len(x) for x in images.values())
    columns = min(columns, room // (min(widest, _SMALLEST_CELL) + _SEPARATOR))
    cell_width = min(widest, room // columns - _SEPARATOR)
    return columns, cell_width, cell_width / widest


def _shrunk(image: np.ndarray, scale: float) -> Image.Image:
    rgb = image[:, :, :3]  # what is transparent is shown too
    picture = Image.fromarray(np.broadcast_to(rgb, (*rgb.shape[:2], 3)).copy())
    if scale == 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
