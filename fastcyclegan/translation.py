"""The translating itself: files in, network, files out, all three at the same time."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastcyclegan.config import TranslateConfig
from fastcyclegan.data.images import BadImage, from_uint8, pillow_warnings, to_uint8
from fastcyclegan.data.photos import Photo, read_photo, write_photo
from fastcyclegan.errors import UserError
from fastcyclegan.files import printable
from fastcyclegan.models import Network, ResnetGenerator
from fastcyclegan.models.inference import Inference
from fastcyclegan.models.tiles import TiledInference
from fastcyclegan.pixel_range import PIXEL_RANGES

# The ResNet generator halves the size twice, and its innermost reflection needs some pixels.
SMALLEST = 16
# Decoded and not yet translated, so that memory does not grow with the folder.
_PIXELS_AHEAD = 64 * 10**6
# Batches are made of images of one size among so many batches' worth of neighbours.
_WINDOW = 4
GPU_BATCH = 8
# Python, torch and the code of its convolutions.
_PROGRAM_BYTES = 4 * 10**8
# Of all images that a CPU's cores work on together; a megapixel takes about a gigabyte.
_PIXELS_AT_ONCE = 4 * 10**6


class Translator:
    """A generator in eval mode as a function of arrays of pixels.

    Attributes:
        net: the generator.
    """

    def __init__(
        self,
        net: Network,
        dtype: torch.dtype = torch.float32,
        tile: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """With the network's present weights.

        Args:
            net: the generator.
            dtype: what 8-bit images are computed in; 16-bit ones are in fp32.
            tile: images larger than ``tile`` x ``tile`` pixels are computed in bands of that size.
            say: is told, in a line, what such an image will take.

        Raises:
            UserError: ``net`` cannot be computed in bands.
        """
        self.net, self.dtype, self.tile, self.say = net, dtype, tile, say
        self.device = next(net.parameters()).device
        self._functions: dict[torch.dtype, Callable[[torch.Tensor], torch.Tensor]] = {}
        self._bands: dict[torch.dtype, TiledInference] = {}
        if tile:
            self._in_bands(dtype)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Images of one size through the network, rounded to nearest.

        Where the size is no multiple of what the network asks for (4 for a ResNet), or very small,
        the images are continued by their reflection at the right and at the bottom, and cut again.

        Args:
            images: (N, H, W, input_nc), uint8 or uint16.

        Returns:
            (N, H, W, output_nc) in the same dtype.
        """
        images = np.require(images, requirements="CW")  # torch takes no mirrored views
        height, width = images.shape[1:3]
        margins = ((0, 0), *((0, margin(side, self.net)) for side in (height, width)))
        if any(map(any, margins)):  # repeats the edge where a side is 1 pixel
            images = np.pad(images, (*margins, (0, 0)), mode="reflect")
        dtype = torch.float32 if images.dtype == np.uint16 else self.dtype
        if self.tile and images.shape[1] * images.shape[2] > self.tile**2:
            result = np.stack([self._tiled(image, dtype) for image in images])
        else:
            result = self._pixels(self._function(dtype)(self._real(images, dtype)), images.dtype)
        return result[:, :height, :width]

    def _real(self, images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        """What the network takes for (N, H, W, C) pixels."""
        if images.dtype == np.uint8:
            return from_uint8(torch.from_numpy(images).to(self.device), dtype, self.net.pixel_range)
        deep = torch.from_numpy(images.astype(np.float32)).to(self.device)
        *_, centre, half = PIXEL_RANGES[self.net.pixel_range]
        return ((deep / 32767.5 - 1) * half + centre).permute(0, 3, 1, 2)

    def _pixels(self, x: torch.Tensor, dtype: np.dtype) -> np.ndarray:
        """What the network puts out, (N, C, H, W), as (N, H, W, C) in uint8 or uint16."""
        if dtype == np.uint8:
            return to_uint8(x, self.net.pixel_range).cpu().numpy()
        *_, centre, half = PIXEL_RANGES[self.net.pixel_range]
        scaled = ((x.float() - centre) / half * 32767.5 + 32767.5).round().clamp(0, 65535)
        return scaled.nan_to_num(0).permute(0, 2, 3, 1).cpu().numpy().astype(np.uint16)

    def _in_bands(self, dtype: torch.dtype) -> TiledInference:
        if dtype not in self._bands:
            try:
                self._bands[dtype] = TiledInference(self.net, dtype)
            except ValueError as problem:
                raise UserError(f"--tile: {problem}; leave it out") from None
        return self._bands[dtype]

    def _tiled(self, image: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        function, (height, width, _) = self._in_bands(dtype), image.shape
        plan = function.plan(height, width, self.tile)
        result = np.empty((height, width, self.net.arch["output_nc"]), image.dtype)
        memory = plan.memory + image.nbytes + result.nbytes + _PROGRAM_BYTES
        seconds, sweeps = function.seconds(plan, height * width), f"{plan.sweeps} sweeps"
        self.say(
            f"{width}x{height} in {plan.bands} bands of {plan.rows} rows, "
            f"{sweeps if plan.sweeps > 1 else 'one sweep'}: "
            f"about {memory / 1e9:.1f} GB and {_duration(seconds)}"
        )

        def read(start: int, stop: int) -> torch.Tensor:
            return self._real(image[None, start:stop], dtype)

        def write(start: int, rows: torch.Tensor) -> None:
            result[start : start + rows.shape[2]] = self._pixels(rows, image.dtype)[0]

        function(read, write, height, width, self.tile)
        return result

    def _function(self, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        if dtype not in self._functions:
            self._functions[dtype] = self._prepare(dtype)
        return self._functions[dtype]

    def _prepare(self, dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
        net = self.net
        if self.device.type == "cpu":
            return Inference(net, dtype) if isinstance(net, ResnetGenerator) else net
        weights = net.weights_in(dtype)
        return lambda x: net.compute(x.contiguous(memory_format=torch.channels_last), weights)


def margin(size: int, net: Network) -> int:
    """Pixels to add to a side so that the network takes it."""
    return max(SMALLEST, net.smallest, -(-size // net.multiple) * net.multiple) - size


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def in_order_of_numbers(name: Any) -> list[Any]:
    """A sort key under which frame9 comes before frame10."""
    parts = re.split(r"(\d+)", str(name))
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


@dataclass(frozen=True)
class Job:
    """One image to do.

    Attributes:
        source, target: files.
        pixels: of the image, for the memory that it takes.
    """

    source: Path
    target: Path
    pixels: int = 0


Outcome = tuple[Job, str | None]


def translate_files(
    translator: Translator, jobs: Sequence[Job], config: TranslateConfig
) -> Iterator[Outcome]:
    """Do ``jobs``; yields each with None when its file is written, or why it could not be read.

    Raises:
        UserError: a result cannot be written; what is written by then stays.
    """
    with pillow_warnings():
        if translator.device.type == "cuda":
            yield from in_batches(translator, jobs, config, config.batch_size or GPU_BATCH)
        else:
            most = max((job.pixels for job in jobs), default=0)
            together = config.batch_size or max(1, _PIXELS_AT_ONCE // max(1, most))
            yield from side_by_side(translator, jobs, config, together)


def side_by_side(
    translator: Translator, jobs: Sequence[Job], config: TranslateConfig, together: int
) -> Iterator[Outcome]:
    """On a CPU: up to ``together`` images at once, each from file to file in a thread of its own.

    The cores are shared out between them. One core per image is faster than all cores for each
    image in turn, as nothing waits for the slowest core.
    """
    cores = torch.get_num_threads()
    workers = max(1, min(together, cores, len(jobs)))
    share = partial(torch.set_num_threads, cores // workers)

    def whole(job: Job) -> Outcome:
        photo = _read(job, translator, config)
        if isinstance(photo, str):
            return job, photo
        pixels = translator(photo.pixels[None])[0]
        _write(job.target, replace(photo, pixels=pixels), config.quality)
        return job, None

    try:
        with ThreadPoolExecutor(workers, initializer=share) as pool:
            try:
                yield from pool.map(whole, jobs)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(cores)


def in_batches(
    translator: Translator, jobs: Sequence[Job], config: TranslateConfig, size: int
) -> Iterator[Outcome]:
    """On a GPU: batches of equal images, while threads decode the next and encode the last ones.

    In the order of ``jobs``, but for neighbours that are joined with others of their size.
    """
    threads = config.num_threads
    with ThreadPoolExecutor(threads) as pool:
        writing: deque[tuple[Job, Future]] = deque()
        try:
            photos = _ahead(pool, lambda job: _read(job, translator, config), jobs, 2 * threads)
            for some in _batches(photos, size):
                jobs_here, found = zip(*some, strict=True)
                if isinstance(found[0], str):
                    yield from some
                    continue
                results = translator(np.stack([photo.pixels for photo in found]))
                for job, photo, pixels in zip(jobs_here, found, results, strict=True):
                    done = replace(photo, pixels=pixels)
                    writing.append((job, pool.submit(_write, job.target, done, config.quality)))
                while len(writing) > 2 * max(threads, size):
                    yield _written(writing.popleft())
            while writing:
                yield _written(writing.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _read(job: Job, translator: Translator, config: TranslateConfig) -> Photo | str:
    try:
        channels = translator.net.arch["input_nc"]
        return read_photo(job.source, channels, config.alpha, config.keep_exif)
    except BadImage as problem:
        return str(problem)


def _write(target: Path, photo: Photo, quality: int) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        name = printable(target.parent)
        raise UserError(f"--output {name} cannot be made: {problem.strerror}") from None
    write_photo(target, photo, quality)


def _written(pending: tuple[Job, Future]) -> Outcome:
    job, future = pending
    future.result()
    return job, None


def _ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Job], Photo | str],
    jobs: Iterable[Job],
    count: int,
) -> Iterator[tuple[Job, Photo | str]]:
    """Each job with the function's result, up to ``count`` jobs ahead, fewer if they are large."""
    waiting: deque[tuple[Job, Future]] = deque()
    for job in jobs:
        held = sum(other.pixels for other, _ in waiting)
        while waiting and (len(waiting) >= count or held + job.pixels > _PIXELS_AHEAD):
            first, future = waiting.popleft()
            held -= first.pixels
            yield first, future.result()
        waiting.append((job, pool.submit(function, job)))
    for job, future in waiting:
        yield job, future.result()


def _batches(
    photos: Iterable[tuple[Job, Photo | str]], size: int
) -> Iterator[list[tuple[Job, Photo | str]]]:
    """Lists of at most ``size`` photos of one shape, or of one that could not be read."""
    groups: dict[Any, list[tuple[Job, Photo | str]]] = {}
    for pair in photos:
        _, photo = pair
        if isinstance(photo, str):
            yield [pair]
            continue
        group = groups.setdefault((photo.pixels.shape, photo.pixels.dtype), [])
        group.append(pair)
        if len(group) == size:
            yield groups.pop((photo.pixels.shape, photo.pixels.dtype))
        elif sum(map(len, groups.values())) >= _WINDOW * size:
            yield groups.pop(next(iter(groups)))
    yield from groups.values()


class Speed:
    """Images per second since the first one was done, and when to tell it."""

    def __init__(self, every_s: float = 10.0) -> None:
        self._every, self._done = every_s, 0
        self._start = self._told = time.monotonic()

    def count(self) -> bool:
        """Count one image; whether it is time to say so."""
        self._done += 1
        now = time.monotonic()
        due = now - self._told >= self._every
        if due:
            self._told = now
        return due

    @property
    def img_per_s(self) -> float:
        """Over everything until now."""
        return self._done / max(1e-9, time.monotonic() - self._start)
