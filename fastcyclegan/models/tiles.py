"""A ResNet generator over an image that does not fit in memory, exactly and without seams.

The image is worked on in bands of rows, as wide as itself. Every band is computed from as many rows
around it as its convolutions reach, so that nothing has to be blended. An instance norm wants the
mean and variance of the whole image: so each convolution in front of one has a sweep over all bands
of its own, and what follows it waits for the next sweep. Without instance norms one sweep does all.

Between sweeps only maps at a quarter of the image's height and width are kept: the input of the
residual block, and the outputs of its convolutions, which take each other's place band by band.
In front of the blocks and behind them, at full and half size, each sweep starts again from the last
map that is kept; that makes an eighth more work in all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from fastcyclegan.models.inference import Stage, Statistics, run, stages_of
from fastcyclegan.models.network import Network
from fastcyclegan.models.resnet import ResnetGenerator

# Rows of a band are multiples of this: two halvings, and pairs of rows in the last convolution.
_GRID = 8
_LAST = torch.channels_last
# the work of the sweeps that wait for statistics, where that of the whole image at once is 1
_AGAIN = 1.13
Rows = Callable[[int, int], torch.Tensor]
Write = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True)
class Plan:
    """What a tiled run will take.

    Attributes:
        bands: pieces per sweep.
        rows: of the image in each of them.
        sweeps: over all bands.
        memory: bytes of the kept maps and of one band; the two images themselves are not counted.
        work: of all sweeps, where that of the whole image at once is 1.
    """

    bands: int
    rows: int
    sweeps: int
    memory: int
    work: float


class Moments:
    """Mean and variance per channel of maps that come in pieces, combined by Chan's formula."""

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: torch.Tensor) -> None:
        """Count in a piece (1, C, H, W)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        self.dtype = x.dtype
        if x.is_cuda:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        else:  # var_mean takes ten times as long on a CPU
            mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        n, mean, var = x.shape[0] * x.shape[2] * x.shape[3], mean.double(), var.double()
        total, delta = self.count + n, mean - self.mean.to(mean)
        self.m2 = self.m2.to(var) + var * n + delta**2 * (self.count * n / total)
        self.mean, self.count = self.mean.to(mean) + delta * (n / total), total

    def statistics(self) -> Statistics:
        """Mean and biased variance, (C,) each, in at least fp32."""
        return self.mean.to(self.dtype), (self.m2 / self.count).to(self.dtype)


class TiledInference:
    """A generator in eval mode as a function of an image in rows.

    Raises:
        ValueError: the network cannot be computed in bands; the message says why.
    """

    def __init__(self, net: Network, dtype: torch.dtype) -> None:
        if not isinstance(net, ResnetGenerator):
            raise ValueError(_refusal(net))
        self.stages, self.dtype = stages_of(net, dtype), dtype
        self.device = next(net.parameters()).device
        self.waits = any(stage.needs_statistics for stage in self.stages)

    def plan(self, height: int, width: int, tile: int) -> Plan:
        """For an image of that size, in bands of about ``tile`` x ``tile`` pixels each."""
        rows = min(height, max(_GRID, tile * tile // width // _GRID * _GRID))
        bands = -(-height // rows)
        size = torch.finfo(self.dtype).bits // 8
        ngf = self.stages[0].layer.weight.shape[0]
        quarter = 4 * ngf * width // 4  # numbers per row of a map in the blocks
        # of a band: maps at full size, and what Winograd's transforms make of one in the blocks
        full, inner = 5 * (rows + 16) * width * ngf, 8 * (rows // 4 + 8) * quarter
        if not self.waits:
            reach = 2 * (len(self.stages) - 4)
            full += 5 * min(4 * reach, height - rows) * width * ngf
            memory = size * (full + 8 * (rows // 4 + reach) * quarter)
            # a layer computes what all behind it reach: on average half of the blocks' reach
            return Plan(bands, rows, 1, memory, 1 + (1 - 1 / bands) * 2 * reach / rows)
        kept = 2 * quarter * (height // 4)
        return Plan(bands, rows, len(self.stages), size * (kept + max(full, inner)), _AGAIN)

    @torch.inference_mode()
    def seconds(self, plan: Plan, pixels: int) -> float:
        """About how long an image of so many pixels will take here: a small one is timed."""
        side = 128
        shape = 1, self.stages[0].layer.weight.shape[1], side, side
        x = torch.zeros(shape, dtype=self.dtype, device=self.device)
        timed = []
        for _ in range(2):
            start = time.perf_counter()
            run(self.stages, x).sum().item()
            timed.append(time.perf_counter() - start)
        return min(timed) * plan.work * pixels / side**2

    @torch.inference_mode()
    def __call__(
        self,
        read: Rows,
        write: Write,
        height: int,
        width: int,
        tile: int,
        tick: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Translate an image of ``height`` x ``width`` pixels, both multiples of 4.

        Args:
            read: gives rows start to stop of the image, (1, C, stop - start, W), in the network's
                pixel range.
            write: is given the first row and (1, C', rows, W), likewise, from top to bottom.
            height, width: pixels.
            tile: see :meth:`plan`.
            tick: is told the finished share of the sweeps.
        """
        sweep = _Sweep(self.plan(height, width, tile), height, tick)

        def image(start: int, stop: int) -> torch.Tensor:
            x = read(start, stop).to(self.device, self.dtype)
            return x.contiguous(memory_format=_LAST)

        if not self.waits:
            sweep.outer(self.stages, image, height, write)
            return
        x = sweep.outer(self.stages[:3], image, height, None)
        sweep.blocks(self.stages[3:-3], x)
        sweep.outer(self.stages[-3:], lambda a, b: x[:, :, a:b], x.shape[2], write)


class _Sweep:
    """The sweeps over one image."""

    def __init__(self, plan: Plan, height: int, tick: Callable[[float], None]) -> None:
        self.plan, self.height, self.tick, self.done = plan, height, tick, 0

    def bands(self, rows: int) -> Iterator[tuple[int, int]]:
        """The bands of a map of ``rows`` rows, from top to bottom."""
        step = self.plan.rows * rows // self.height
        for start in range(0, rows, step):
            yield start, min(rows, start + step)
        self.done += 1
        self.tick(self.done / self.plan.sweeps)

    def outer(
        self, stages: Sequence[Stage], source: Rows, rows: int, write: Write | None
    ) -> torch.Tensor | None:
        """Stages between kept maps; the result is written or, without ``write``, kept."""
        sizes = [rows]
        for stage in stages:
            sizes.append(stage.out_rows(sizes[-1]))
        known: list[Statistics] = []
        for count, stage in enumerate(stages, 1):
            if stage.needs_statistics and (write or count < len(stages)):
                moments = Moments()
                for band in self.bands(sizes[count]):
                    moments.add(_chain(stages[:count], known, source, sizes, band))
                known.append(moments.statistics())
        if write:
            for band in self.bands(sizes[-1]):
                write(band[0], _chain(stages, known, source, sizes, band))
            return None
        return self._kept(stages, known, source, sizes)

    def _kept(
        self,
        stages: Sequence[Stage],
        known: Sequence[Statistics],
        source: Rows,
        sizes: Sequence[int],
    ) -> torch.Tensor:
        moments, x = Moments(), None
        for start, stop in self.bands(sizes[-1]):
            y = _chain(stages, known, source, sizes, (start, stop))
            moments.add(y)
            if x is None:
                shape = (1, y.shape[1], sizes[-1], y.shape[3])
                x = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=_LAST)
            x[:, :, start:stop] = y
        _finish(stages[-1], x, moments.statistics(), None)
        return x

    def blocks(self, trunk: Sequence[Stage], x: torch.Tensor) -> None:
        """Every residual block, in the place of its input ``x``."""
        y = torch.empty_like(x)
        for first, second in zip(trunk[::2], trunk[1::2], strict=True):
            of_first = self._convolved(first, lambda a, b: x[:, :, a:b], y)

            def halfway(a: int, b: int, stage=first, known=of_first) -> torch.Tensor:
                return stage.finish(y[:, :, a:b], known, None)

            _finish(second, y, self._convolved(second, halfway, y), x, into=x)

    def _convolved(self, stage: Stage, source: Rows, into: torch.Tensor) -> Statistics:
        """Put the convolution's output in ``into``, from which ``source`` may read: a band late."""
        rows, moments = into.shape[2], Moments()
        late, y = 0, None
        for start, stop in self.bands(rows):
            x = source(*stage.source(start, stop, rows))
            before, y = y, stage.convolve(x, start, stop, rows)
            moments.add(y)
            if before is not None:
                into[:, :, late:start] = before
            late = start
        into[:, :, late:] = y
        return moments.statistics()


def _finish(
    stage: Stage,
    y: torch.Tensor,
    known: Statistics,
    skip: torch.Tensor | None,
    into: torch.Tensor | None = None,
) -> None:
    """What follows a convolution, for a whole map, some rows at a time."""
    into = y if into is None else into
    for start in range(0, y.shape[2], 64):
        some = slice(start, start + 64)
        part = None if skip is None else skip[:, :, some]
        into[:, :, some] = stage.finish(y[:, :, some], known, part)


def _chain(
    stages: Sequence[Stage],
    known: Sequence[Statistics],
    source: Rows,
    sizes: Sequence[int],
    band: tuple[int, int],
) -> torch.Tensor:
    """Rows ``band`` of the last stage's output; its norm is left out if it waits for statistics.

    ``sizes``: rows of the input and of each stage's whole output; ``known``: the statistics that
    there are, of the first stages.
    """
    wanted = [band]
    for stage, rows in zip(reversed(stages), reversed(sizes[: len(stages)]), strict=True):
        wanted.insert(0, stage.source(*_paired(wanted[0], stage), rows))
    x, skip = source(*wanted[0]), None
    for index, stage in enumerate(stages):
        above, below = _paired(wanted[index + 1], stage)
        y = stage.convolve(x, above, below, sizes[index])
        if stage.adds:
            skip = skip[:, :, above - wanted[index - 1][0] :][:, :, : below - above]
        if not stage.needs_statistics:
            y = stage.finish(y, None, skip)
        elif index < len(known):
            y = stage.finish(y, known[index], skip)
        skip, x = x, y[:, :, wanted[index + 1][0] - above : wanted[index + 1][1] - above]
    return x


def _paired(rows: tuple[int, int], stage: Stage) -> tuple[int, int]:
    """``rows`` widened to pairs where the stage makes its output in pairs."""
    start, stop = rows
    return (start // 2 * 2, -(-stop // 2) * 2) if stage.kind in ("up", "resize") else rows


def _refusal(net: Network) -> str:
    name = net.arch["class"]
    if name == "UnetGenerator":
        return (
            "a U-Net's innermost levels see the whole image, so that each tile would need all of it"
        )
    return f"{name} is not made of the residual blocks that tiles are cut for"
