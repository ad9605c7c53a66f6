"""One image file in, one image file out: the policy for everything that a file can hold.

Read are JPEG, PNG, WebP, BMP, PPM and TIFF, told by their content. The result is upright, 8-bit and
has the asked number of channels. Whatever is wrong with a file becomes a BadImage.
"""

import os
import stat
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.kernels.augment import normalise_ref
from fastcyclegan.pixel_range import PIXEL_RANGES

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF")
MAX_PIXELS = 8192 * 8192
MAX_FILE_BYTES = 512 * 2**20
ALPHA = ("white", "black", "drop")

NOTE_ROTATED = "turned upright by EXIF"
NOTE_16BIT = "16-bit grey reduced to 8 bits"
NOTE_FRAMES = "several frames, first one used"
NOTE_ALPHA = "with transparency"
NOTE_CONVERTED = "converted from "
NOTE_GREY = "grey"

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_16BIT_GREY = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class BadImage(Exception):
    """An image file that cannot be used; the message is the reason, in one line."""


@dataclass(frozen=True)
class Header:
    """What a file says about its image before it is decoded; height and width are upright."""

    height: int
    width: int
    notes: tuple[str, ...]


def one_line(text: str, limit: int = 200) -> str:
    """``text`` without line breaks and control characters, cut to ``limit`` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a " + ", ".join(FORMATS[:-1]) + " or " + FORMATS[-1] + " image"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {MAX_PIXELS / 10**6:.3g} megapixels"
    if isinstance(error, OSError) and error.strerror:
        return one_line(f"cannot be read: {error.strerror}")
    return one_line(f"cannot be decoded: {error or type(error).__name__}")


@contextmanager
def _as_bad_image() -> Iterator[None]:
    # Pillow raises OSError, ValueError, SyntaxError, struct.error and more, at open and at load.
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage(_reason(error)) from error


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Within it Pillow's warnings are silent, except that of a decompression bomb: an error.

    Warning filters belong to the process, so enter this outside of a pool of threads, not inside.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def _check_file(path: str | Path) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    if status.st_size == 0:
        raise BadImage("empty file")
    if status.st_size > MAX_FILE_BYTES:
        raise BadImage(f"file of {status.st_size >> 20} MiB, more than {MAX_FILE_BYTES >> 20}")


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    cap = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if width * height > cap:
        raise BadImage(f"{width}x{height} is more than {cap / 10**6:.3g} megapixels")
    wide_grey = image.mode == "I" and image.format not in ("PNG", "PPM")
    if image.mode == "F" or wide_grey:
        raise BadImage(f"signed, 32-bit or floating-point pixels (mode {image.mode})")


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    _check_file(path)
    with Image.open(path, formats=FORMATS) as image:
        _check_header(image)
        yield image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken metadata say nothing about the pixels
        return 1


def _header_orientation(image: Image.Image) -> int:
    # A PNG may carry EXIF behind its pixels: asking for it would decode the whole image.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return _orientation(image)


def _header_notes(image: Image.Image, orientation: int) -> tuple[str, ...]:
    notes = []
    if orientation in _UPRIGHT:
        notes.append(NOTE_ROTATED)
    if image.mode in _16BIT_GREY:
        notes.append(NOTE_16BIT)
    elif image.has_transparency_data:
        notes.append(NOTE_ALPHA)
    if getattr(image, "is_animated", False):
        notes.append(NOTE_FRAMES)
    if image.mode in ("1", "L", "LA"):
        notes.append(NOTE_GREY)
    if image.mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        notes.append(NOTE_CONVERTED + image.mode)
    return tuple(notes)


def read_header(path: str | Path) -> Header:
    """Size and peculiarities of an image file, without decoding it.

    Raises:
        BadImage: unreadable, empty, too large, not one of FORMATS, or of an unsupported pixel type.
    """
    with _as_bad_image(), _opened(path) as image:
        orientation = _header_orientation(image)
        width, height = image.size
        # Pillow gives the upright size of a TIFF, and the stored size of everything else.
        if orientation in (5, 6, 7, 8) and image.format != "TIFF":
            width, height = height, width
        return Header(height, width, _header_notes(image, orientation))


def _to_8bit(image: Image.Image) -> Image.Image:
    if image.mode not in _16BIT_GREY:
        return image
    return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))


def to_channels(image: Image.Image, channels: int, alpha: str) -> Image.Image:
    """A decoded image as mode L, RGB or RGBA; ``alpha`` as for :func:`read_image`."""
    image = _to_8bit(image)
    if channels == 4:
        return image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if alpha != "drop":
            image = Image.alpha_composite(Image.new("RGBA", image.size, alpha), image)
    # By way of RGB as the reference does it: a palette or CMYK has no direct way to grey.
    return image.convert("RGB").convert(_MODES[channels])


def load_upright(path: str | Path) -> Image.Image:
    """The first frame of an image file, upright, in the mode that the file has.

    Raises:
        BadImage: for whatever is wrong with the file.
    """
    with _as_bad_image(), _opened(path) as image:
        image.load()
        orientation = _orientation(image)
        return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image.copy()


def load_image(path: str | Path, channels: int, alpha: str = "white") -> Image.Image:
    """Like :func:`read_image`, as a Pillow image of mode L, RGB or RGBA."""
    if channels not in _MODES or alpha not in ALPHA:
        raise ValueError(f"channels={channels}, alpha={alpha!r}: want 1, 3 or 4 and one of {ALPHA}")
    image = load_upright(path)
    with _as_bad_image():
        return to_channels(image, channels, alpha)


def read_image(path: str | Path, channels: int, alpha: str = "white") -> np.ndarray:
    """Decode an image file: upright, first frame, 8 bits per channel.

    16-bit grey is divided by 257. Transparent images are laid on ``alpha`` ("white" or "black"), or
    lose their alpha channel ("drop"); with 4 channels it is kept.

    Returns:
        uint8 (H, W, channels); channels is 1 (grey), 3 (RGB) or 4 (RGBA).

    Raises:
        BadImage: for whatever is wrong with the file.
    """
    image = load_image(path, channels, alpha)
    return np.array(image).reshape(image.height, image.width, channels)


def format_of(path: str | Path) -> str:
    """The one of FORMATS that the suffix of ``path`` means. Raises UserError: none of them."""
    file_format = Image.registered_extensions().get(Path(path).suffix.lower())
    if file_format not in FORMATS:
        raise UserError(f"{printable(path)}: give it a suffix such as .png or .jpg")
    return file_format


def write_image(
    path: str | Path, array: np.ndarray, *, exif: bytes = b"", quality: int = 95
) -> None:
    """Write an (H, W, C) array; the suffix of ``path`` gives the format.

    The file appears complete or not at all.

    Args:
        path: where to.
        array: uint8 with C = 1 (grey), 2 (grey and alpha), 3 or 4, or uint16 with C = 1.
        exif: what the file is to say in EXIF; formats without it leave it out.
        quality: of JPEG and WebP, to 100.

    Raises:
        UserError: the suffix is unknown, or the folder cannot be written.
    """
    path = Path(path)
    _save(path, _as_picture(array), format_of(path), quality, **({"exif": exif} if exif else {}))


def _as_picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _save(
    path: str | Path, image: Image.Image, file_format: str, quality: int, **options: Any
) -> None:
    path = Path(path)
    # Without fsync, unlike a checkpoint: an image can be made again.
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            image.save(file, format=file_format, quality=quality, **options)
        os.replace(temporary, path)
    except (OSError, ValueError) as error:  # ValueError: too large for the format
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {printable(path)}: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_animation(
    path: str | Path, frames: Iterator[np.ndarray], count: int, milliseconds: int
) -> None:
    """Write ``count`` uint8 (H, W, C) arrays of one shape, C = 1, 3 or 4, as an endless WebP.

    The file appears complete or not at all; each frame is shown for ``milliseconds``, and asked for
    when the one before is encoded, so that one at a time is in memory.

    Raises:
        UserError: the suffix is not .webp, or the file cannot be written.
    """
    if Path(path).suffix.lower() != ".webp":
        raise UserError(f"{printable(path)}: an animation is a .webp file")
    picture, shown = _as_picture(next(frames)), 0

    def seek(number: int) -> None:
        nonlocal shown
        if number == shown + 1:
            picture.paste(_as_picture(next(frames)))
            shown = number

    # Pillow asks an image for its frames in their order, but makes a list of images
    picture.n_frames, picture.seek = count, seek
    _save(path, picture, "WEBP", 95, save_all=True, duration=milliseconds, loop=0)


def to_uint8(x: Tensor, pixel_range: str = "tanh") -> Tensor:
    """(N, C, H, W) float in a range to (N, H, W, C) uint8: nearest value, clamped, NaN to 0."""
    x = x.detach().float()
    if PIXEL_RANGES[pixel_range].half == 1.0:
        x = x * 127.5 + 127.5
    scaled = x.round().clamp(0, 255)
    return scaled.nan_to_num(0).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def from_uint8(x: Tensor, dtype: torch.dtype = torch.float32, pixel_range: str = "tanh") -> Tensor:
    """(N, H, W, C) uint8 to (N, C, H, W) ``dtype`` in ``pixel_range``, channels_last."""
    zero, scale, *_ = PIXEL_RANGES[pixel_range]
    return normalise_ref(x.contiguous(), dtype, zero, scale).permute(0, 3, 1, 2)
