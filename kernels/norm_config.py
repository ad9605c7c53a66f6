"""How the kernels of the norms divide an image among programs: the table for all of them.

A program works on ``BLOCK_C`` channels of a run of pixels. The pixels of a sample are divided into
as few runs as give ``programs`` programs in all, each of ``min_blocks`` blocks at least, and into
``max_runs`` at most: each run of the reducing kernels leaves one partial sum per channel, and every
program of the applying kernels reads them all. The division depends on shape and dtype only, so
that results do not depend on the GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from fastcyclegan.kernels.dispatch import jit, next_power_of_2, tl

PROGRAMS = 512


class Config(NamedTuple):
    """Block sizes of one launch; ``unroll`` loads of ``block_p`` pixels are in flight at once."""

    block_p: int
    block_c: int
    unroll: int
    num_warps: int
    programs: int
    min_blocks: int
    max_runs: int


def reduce_config(channels: int, itemsize: int) -> Config:
    """For kernels that read an image and leave partial sums of its pixels."""
    block_c, rows = _blocks(channels, itemsize, num_warps=8)
    return Config(rows, block_c, 2, 8, PROGRAMS, 4, 64)


def batch_config(channels: int, itemsize: int) -> Config:
    """As :func:`reduce_config` where all samples are one image, whose sums one kernel adds up."""
    return reduce_config(channels, itemsize)._replace(max_runs=256)


def apply_config(channels: int, itemsize: int) -> Config:
    """For kernels that combine those sums and write an image."""
    block_c, rows = _blocks(channels, itemsize, num_warps=4)
    return Config(2 * rows, block_c, 1, 4, PROGRAMS, 1, 2**31 - 1)


def _blocks(channels: int, itemsize: int, num_warps: int) -> tuple[int, int]:
    """Channels, 128 bytes of them at most, and pixels that make 16 bytes per thread."""
    block_c = min(next_power_of_2(channels), 128 // itemsize)
    return block_c, num_warps * 32 * 16 // itemsize // block_c


def split(pixels: int, groups: int, config: Config) -> tuple[int, int]:
    """(number of runs, pixels per run) for each of ``groups`` blocks of channels of all samples."""
    wanted = min(max(-(-config.programs // groups), 1), config.max_runs)
    blocks = -(-pixels // config.block_p)
    run = max(-(-blocks // wanted), config.min_blocks) * config.block_p
    return -(-pixels // run), run


@jit
def runs_of(pixels, run):
    """The number of runs; as all that follows, without a sum beyond ``pixels``, which may wrap."""
    return (pixels - 1) // run + 1


@jit
def bounds_of(number, run, pixels):
    """First pixel of a run, and the end of it."""
    start = number * run
    return start, start + tl.minimum(run, pixels - start)
