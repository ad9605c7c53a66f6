"""Photographs on their way through a generator: what is not colour goes around it.

Transparency and EXIF are laid aside when a file is read and put back when the result is written;
16-bit grey keeps its 16 bits.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fastcyclegan.data.images import BadImage, format_of, load_upright, to_channels, write_image
from fastcyclegan.errors import UserError

ALPHA = ("keep", "white", "black", "drop")
_ORIENTATION = 0x0112
_WITH_ALPHA = ("PNG", "WEBP", "TIFF")
_DEEP = ("PNG", "TIFF")


@dataclass(frozen=True)
class Photo:
    """A decoded file.

    Attributes:
        pixels: (H, W, C), uint8, or uint16 with C = 1.
        alpha: uint8 (H, W, 1), or None where nothing is transparent or it is not kept.
        exif: as bytes, without the orientation, which has been obeyed; empty if not kept.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes = b""


def read_photo(path: Path, channels: int, alpha: str = "keep", keep_exif: bool = False) -> Photo:
    """Decode an image file for a generator that takes ``channels``: 1, 3 or 4.

    ``alpha``: ``keep`` lays the image on white and its transparency aside; the others are those of
    :func:`fastcyclegan.data.images.read_image`.

    Raises:
        BadImage: for whatever is wrong with the file, also colour where ``channels`` is 1.
    """
    image = load_upright(path)
    exif = _exif(image) if keep_exif else b""
    if channels == 1 and image.mode.startswith("I"):
        return Photo(np.asarray(image).astype(np.uint16)[..., None], None, exif)
    try:
        aside = None
        if alpha == "keep" and channels != 4 and image.has_transparency_data:
            aside = _array(image.convert("RGBA").getchannel("A"))
        under = "white" if alpha == "keep" else alpha
        pixels = _array(to_channels(image, 3 if channels == 1 else channels, under))
    except (ValueError, OSError) as problem:
        raise BadImage(f"cannot be decoded: {problem}") from None
    if channels == 1:
        pixels = _grey(pixels)
    return Photo(pixels, aside, exif)


def _exif(image: Image.Image) -> bytes:
    try:
        exif = image.getexif()
        exif.pop(_ORIENTATION, None)
        return exif.tobytes() if len(exif) else b""
    except Exception:  # broken metadata are no reason to lose the picture
        return b""


def _array(image: Image.Image) -> np.ndarray:
    return np.array(image).reshape(image.height, image.width, -1)


def _grey(pixels: np.ndarray) -> np.ndarray:
    if (pixels != pixels[..., :1]).any():
        raise BadImage("is in colour, and the generator takes grey: convert it first")
    return pixels[..., :1]


def write_photo(path: Path, photo: Photo, quality: int = 95) -> None:
    """Write ``photo`` as what the suffix of ``path`` says, complete or not at all.

    Formats without transparency get the bare colours, those without 16 bits the upper 8.

    Raises:
        UserError: the suffix is unknown, or the file cannot be written.
    """
    pixels, file_format = photo.pixels, format_of(path)
    if pixels.dtype == np.uint16 and (file_format not in _DEEP or pixels.shape[-1] > 1):
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if photo.alpha is not None and pixels.shape[-1] < 4 and file_format in _WITH_ALPHA:
        pixels = np.concatenate([pixels, photo.alpha], axis=-1)
    if pixels.shape[-1] == 4 and file_format not in _WITH_ALPHA:
        pixels = pixels[..., :3]
    write_image(path, pixels, exif=photo.exif, quality=quality)


def check_target(path: Path) -> None:
    """Raise UserError if the suffix of ``path`` means no format that is written."""
    if not path.suffix:
        raise UserError(f"{path}: give it a suffix such as .png")
    format_of(path)
