"""Decode every image of a scanned folder once, resized, into one flat buffer.

The deterministic part of the reference's preprocessing happens here with Pillow's bicubic filter;
what is random (crop window, flip) is left to the sampler.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from fastcyclegan.data.image_set import ImageSet
from fastcyclegan.data.images import BadImage, load_image, pillow_warnings
from fastcyclegan.data.scan import Scan, map_in_threads
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable

CENTRED = "resize_and_center_crop"
PREPROCESS = ("resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none", CENTRED)
# Sides: what resize_and_center_crop looks at of an image that is longer.
LONGEST = 8
NOTE_CONSTANT = "of one constant colour"


def target_size(
    height: int, width: int, preprocess: str, load_size: int, crop_size: int
) -> tuple[int, int]:
    """(height, width) in pixels of an image after the resize that ``preprocess`` asks for.

    resize_and_crop: load_size x load_size; crop: unchanged (the sampler cuts the window);
    scale_width, scale_width_and_crop: width load_size, height in proportion, rounded down, but at
    least crop_size; none: both sides rounded to a multiple of 4; resize_and_center_crop: crop_size
    x crop_size, cut out here.
    """
    if preprocess == CENTRED:
        return crop_size, crop_size
    if preprocess == "resize_and_crop":
        return load_size, load_size
    if preprocess in ("scale_width", "scale_width_and_crop"):
        return int(max(load_size * height / width, crop_size)), load_size
    if preprocess == "none":
        return max(4, round(height / 4) * 4), max(4, round(width / 4) * 4)
    return height, width


def check_preprocess(preprocess: str, load_size: int, crop_size: int) -> None:
    """Raise UserError if the three options contradict each other or are out of range."""
    if preprocess not in PREPROCESS:
        raise UserError(f"--preprocess {preprocess}: want one of {', '.join(PREPROCESS)}")
    resizes = preprocess not in ("crop", "none")
    if resizes and load_size < 1:
        raise UserError(f"--load_size {load_size}: want at least 1")
    if preprocess != "none" and crop_size < 1:
        raise UserError(f"--crop_size {crop_size}: want at least 1")
    if resizes and preprocess.endswith("crop") and load_size < crop_size:
        raise UserError(f"--load_size {load_size} is smaller than --crop_size {crop_size}")


class _Fit(NamedTuple):
    """How images are brought to size."""

    preprocess: str
    load_size: int
    crop_size: int

    def size(self, height: int, width: int) -> tuple[int, int]:
        return target_size(height, width, *self)

    def image(self, image: Image.Image) -> Image.Image:
        if self.preprocess == CENTRED:
            return self._centred(image)
        height, width = self.size(image.height, image.width)
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def _centred(self, image: Image.Image) -> Image.Image:
        """The shorter side to load_size, then the centre: torchvision's Resize, CenterCrop."""
        short = min(image.size)
        # of a very long image only the middle is enlarged, which would take gigabytes
        image = _middle(image, *(min(side, LONGEST * short) for side in image.size))
        width, height = (int(self.load_size * side / short) for side in image.size)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return _middle(image, self.crop_size, self.crop_size)


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2.0), round((image.height - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


@dataclass
class _Slots:
    """The buffer, and where in it each file of the scan goes. ``size`` is updated by decoding."""

    pixels: np.ndarray
    offset: np.ndarray
    size: list[tuple[int, int]]


def _allocate(sizes: list[tuple[int, int]], channels: int) -> _Slots:
    ends = np.cumsum([0] + [h * w for h, w in sizes], dtype=np.int64)
    try:
        pixels = np.empty((int(ends[-1]), channels), np.uint8)
    except MemoryError:
        gib = ends[-1] * channels / 2**30
        raise UserError(
            f"the images need {gib:.1f} GiB of memory: lower --load_size or --max_dataset_size"
        ) from None
    return _Slots(pixels, ends[:-1], sizes)


def _refuse_small(scan: Scan, sizes: list[tuple[int, int]], crop_size: int) -> None:
    small = [i for i, size in enumerate(sizes) if min(size) < crop_size]
    if small:
        h, w = sizes[small[0]]
        more = f" (and {len(small) - 1} more)" if len(small) > 1 else ""
        raise UserError(
            f"{printable(scan.files[small[0]])} is {w}x{h}, smaller than --crop_size {crop_size}"
            f"{more}: lower --crop_size or use --preprocess resize_and_crop"
        )


def _refuse_bad(scan: Scan, bad: list[tuple[Path, str]], max_bad: float) -> None:
    total = scan.looked_at
    if len(bad) <= max_bad * total and (len(bad) < total or scan.rest):
        return
    allowed = "" if len(bad) == total else f" (--max_bad allows a fraction of {max_bad:g})"
    first = "; ".join(f"{printable(path)}: {reason}" for path, reason in bad[:3])
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise UserError(
        f"{len(bad)} of {total} images in {printable(scan.root)} cannot be used{allowed}: "
        f"{first}{more}"
    )


def _is_constant(pixels: np.ndarray) -> bool:
    few = pixels[:: max(1, len(pixels) // 64)]
    return bool((few == few[0]).all() and (pixels == pixels[0]).all())


def _decoder(scan: Scan, slots: _Slots, fit: _Fit, alpha: str) -> Callable[[int], str | bool]:
    channels = slots.pixels.shape[1]

    def decode(i: int) -> str | bool:
        """Fill slot ``i``; the reason why not, or whether the image has one colour only."""
        try:
            image = load_image(scan.files[i], channels, alpha)
        except BadImage as error:
            return str(error)
        h, w = fit.size(image.height, image.width)
        rows = slots.size[i][0] * slots.size[i][1]
        if h * w != rows:
            return f"decodes to {image.width}x{image.height} pixels, its header says otherwise"
        slots.size[i] = (h, w)
        part = slots.pixels[slots.offset[i] : slots.offset[i] + rows]
        part[:] = np.asarray(fit.image(image)).reshape(rows, channels)
        return _is_constant(part)

    return decode


def _close_gaps(slots: _Slots, good: list[int]) -> _Slots:
    if len(good) == len(slots.size):
        return slots
    end = 0
    offset = np.zeros(len(good), np.int64)
    for k, i in enumerate(good):
        start, rows = slots.offset[i], slots.size[i][0] * slots.size[i][1]
        slots.pixels[end : end + rows] = slots.pixels[start : start + rows]
        offset[k] = end
        end += rows
    return _Slots(slots.pixels[:end], offset, [slots.size[i] for i in good])


def _decode_all(
    scan: Scan, slots: _Slots, fit: _Fit, alpha: str, threads: int, max_bad: float
) -> tuple[list[int], list[tuple[Path, str]], int]:
    bad = list(scan.quarantined)
    _refuse_bad(scan, bad, max_bad)
    good, constant = [], 0
    decode = _decoder(scan, slots, fit, alpha)
    results = map_in_threads(decode, range(len(scan.files)), threads)
    with pillow_warnings(), closing(results):
        for i, result in enumerate(results):
            if isinstance(result, str):
                bad.append((scan.files[i], result))
                _refuse_bad(scan, bad, max_bad)
            else:
                good.append(i)
                constant += result
    return good, bad, constant


def _decode_scan(
    scan: Scan,
    *,
    channels: int,
    fit: _Fit,
    window: int,
    alpha: str,
    threads: int,
    max_bad: float,
) -> ImageSet:
    """As :func:`decode_domain`, of the files that the scan found and no others."""
    sizes = [fit.size(*size) for size in scan.sizes]
    _refuse_small(scan, sizes, window)
    slots = _allocate(sizes, channels)
    good, bad, constant = _decode_all(scan, slots, fit, alpha, threads, max_bad)
    notes = scan.notes | ({NOTE_CONSTANT: constant} if constant else {})
    names = [scan.files[i].relative_to(scan.root).as_posix() for i in good]
    return _image_set(_close_gaps(slots, good), names, bad, notes)


def decode_domain(
    scan: Scan,
    *,
    channels: int = 3,
    preprocess: str = "resize_and_crop",
    load_size: int = 286,
    crop_size: int = 256,
    alpha: str = "white",
    threads: int = 4,
    max_bad: float = 0.01,
    device: str | torch.device = "cpu",
) -> ImageSet:
    """Decode the images of one domain, resized as :func:`target_size` says, in ``threads`` threads.

    A file that cannot be decoded is quarantined, and the next good one takes its place, also one
    behind those that the scan stopped at.

    Args:
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        alpha: what to lay transparent images on, see :func:`images.read_image`.
        max_bad: largest fraction of unusable files, those found by the scan included.

    Raises:
        UserError: too many unusable files or no usable one; an image smaller than the crop
            window; options that contradict each other; not enough memory.
    """
    check_preprocess(preprocess, load_size, crop_size)
    fit = _Fit(preprocess, load_size, crop_size)
    window = crop_size if preprocess.endswith("crop") else 0
    common = {"channels": channels, "alpha": alpha, "threads": threads, "max_bad": max_bad}
    decode = partial(_decode_scan, fit=fit, window=window, **common)
    images, wanted = decode(scan), len(scan.files)
    while len(images) < wanted and scan.rest:
        scan = scan.further(wanted - len(images), images.quarantined, before=len(images))
        images = images.followed_by(decode(scan))
    return images.to(device)


def check_headers(
    scan: Scan, *, preprocess: str, load_size: int, crop_size: int, max_bad: float
) -> None:
    """Raise UserError for what :func:`decode_domain` would refuse by the headers alone."""
    fit = _Fit(preprocess, load_size, crop_size)
    window = crop_size if preprocess.endswith("crop") else 0
    _refuse_small(scan, [fit.size(*size) for size in scan.sizes], window)
    _refuse_bad(scan, scan.quarantined, max_bad)


def _image_set(
    slots: _Slots, names: list[str], quarantined: list[tuple[Path, str]], notes: dict[str, int]
) -> ImageSet:
    size = torch.tensor(slots.size, dtype=torch.int64).view(-1, 2)
    return ImageSet(
        torch.from_numpy(slots.pixels),
        torch.from_numpy(slots.offset),
        size[:, 0].contiguous(),
        size[:, 1].contiguous(),
        names,
        quarantined,
        notes,
    )
