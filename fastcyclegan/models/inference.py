"""A ResNet generator as a row of stages, each of which can compute some rows of its output alone.

This is the generator when nothing is trained: whole images on a CPU (:class:`Inference`), and
images that do not fit in memory (:mod:`fastcyclegan.models.tiles`). A stage is a convolution with
the padding in front of it, the norm and activation behind it, and the sum with the block's input.
Batch norms use their running statistics, and nothing is dropped out.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from fastcyclegan.models import winograd
from fastcyclegan.models.folded import conv_to_few
from fastcyclegan.models.layers import EPS, Layer
from fastcyclegan.models.output import to_pixels
from fastcyclegan.models.resnet import ResnetGenerator
from fastcyclegan.pixel_range import PIXEL_RANGES

Statistics = tuple[torch.Tensor, torch.Tensor]
_TORCH_MODE = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}
# With fewer channels the transforms cost more than Winograd's products save.
_WINOGRAD_CHANNELS = 64


@dataclass
class Stage:
    """One convolution and what stands around it.

    Attributes:
        layer: its tensors, in the dtype that the stage computes in.
        kind: ``same`` (stride 1), ``down`` (3x3, stride 2, zero padding 1), ``up`` (its transpose)
            or ``resize`` (every pixel four times, then as ``same``).
        padding, pad: of ``same`` and ``resize``: the kind, and how many pixels on each side.
        act: behind the norm: ``relu``, ``none``, or the pixel range of the last layer.
        adds: whether the input of the stage before is added behind the norm.
    """

    layer: Layer
    kind: str = "same"
    padding: str = "reflect"
    pad: int = 1
    act: str = "relu"
    adds: bool = False
    _kernel: torch.Tensor | None = field(default=None, repr=False)

    def out_rows(self, rows: int) -> int:
        """Rows of the whole output for ``rows`` rows of the whole input."""
        return {"same": rows, "down": rows // 2}.get(self.kind, 2 * rows)

    def source(self, start: int, stop: int, rows: int) -> tuple[int, int]:
        """The input's rows that the output's rows ``start`` to ``stop`` depend on.

        ``start`` and ``stop`` are even where the stage enlarges; ``rows`` has the whole input.
        """
        if self.kind == "down":
            first, last = 2 * start - 1, 2 * stop
        elif self.kind == "up":
            first, last = start // 2, stop // 2 + 1
        else:
            scale = 2 if self.kind == "resize" else 1
            first, last = (start - self.pad) // scale, -(-(stop + self.pad) // scale)
        return max(0, first), min(rows, last)

    def convolve(self, x: torch.Tensor, start: int, stop: int, rows: int) -> torch.Tensor:
        """The convolution's output (N, C', stop - start, W'), from the rows :meth:`source` names.

        Args:
            x: (N, C, ., W), those rows.
            start, stop: rows of the whole output.
            rows: of the whole input.
        """
        first, _ = self.source(start, stop, rows)
        if self.kind == "down":
            x = F.pad(x, (1, 1, int(start == 0), 0))
            return F.conv2d(x, self.layer.weight, self.layer.bias, stride=2)
        if self.kind == "up":
            up = {"stride": 2, "padding": 1, "output_padding": 1}
            y = F.conv_transpose2d(x, self.layer.weight, self.layer.bias, **up)
            return y[:, :, : stop - start]
        if self.kind == "resize":
            x, first, rows = F.interpolate(x, scale_factor=2.0, mode="nearest"), 2 * first, 2 * rows
            top, bottom = max(0, start - self.pad), min(rows, stop + self.pad)
            x = x[:, :, top - first : bottom - first]
        return self._same(self._padded(x, start, stop, rows))

    def _padded(self, x: torch.Tensor, start: int, stop: int, rows: int) -> torch.Tensor:
        """``x`` with the pixels that lie outside of the whole image: above and below, if reached"""
        p = self.pad
        sides = p, p, max(0, p - start), max(0, stop + p - rows)
        return F.pad(x, sides, mode=_TORCH_MODE[self.padding])

    def _same(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if weight.shape[0] <= 4 and weight.shape[3] > 3:
            return conv_to_few(x, weight, bias)
        if _suits_winograd(weight, x):
            if self._kernel is None:
                self._kernel = winograd.transform_kernel(weight)
            return winograd.convolve(x, self._kernel, bias)
        return F.conv2d(x, weight, bias)

    @property
    def needs_statistics(self) -> bool:
        """Whether the norm's statistics are those of the image."""
        return self.layer.norm == "instance"

    def finish(
        self, y: torch.Tensor, statistics: Statistics | None, skip: torch.Tensor | None
    ) -> torch.Tensor:
        """Norm, sum and activation behind the convolution.

        Args:
            y: (1, C', H', W') from :meth:`convolve`.
            statistics: mean and biased variance (C',) of each channel over the whole image, of an
                instance norm. None: ``y`` is the whole image.
            skip: what is added if :attr:`adds`.
        """
        layer = self.layer
        if layer.norm == "instance":
            y = F.batch_norm(y, *(statistics or (None, None)), None, None, not statistics, 0.0, EPS)
        elif layer.norm == "batch":
            y = F.batch_norm(y, layer.mean, layer.var, layer.scale, layer.shift, False, 0.0, EPS)
        if self.adds:
            y += skip
        if self.act == "relu":
            return torch.relu_(y)
        return to_pixels(y, self.act) if self.act in PIXEL_RANGES else y


def _suits_winograd(weight: torch.Tensor, x: torch.Tensor) -> bool:
    wide = min(weight.shape[:2]) >= _WINOGRAD_CHANNELS
    return not x.is_cuda and x.dtype == torch.float32 and weight.shape[2:] == (3, 3) and wide


def stages_of(net: ResnetGenerator, dtype: torch.dtype) -> list[Stage]:
    """The stages of ``net``, with its present weights in ``dtype``, in order of use."""
    layers = net._layers(net.weights_in(dtype))
    layers = [
        layer._replace(weight=layer.weight.detach().contiguous(memory_format=torch.channels_last))
        for layer in layers
    ]
    (first, *downs), trunk, (*ups, last) = layers[:3], layers[3:-3], layers[-3:]
    up = "up" if net.upsample == "transpose" else "resize"
    inner = {"padding": net.padding}
    behind_sum = "relu" if net.residual_relu else "none"
    stages = [Stage(first, pad=3), *(Stage(layer, "down") for layer in downs)]
    for one, two in zip(trunk[::2], trunk[1::2], strict=True):
        stages += [Stage(one, **inner), Stage(two, act=behind_sum, adds=True, **inner)]
    return [*stages, *(Stage(layer, up) for layer in ups), Stage(last, pad=3, act=net.pixel_range)]


def run(stages: list[Stage], x: torch.Tensor) -> torch.Tensor:
    """One image (1, C, H, W), in the dtype of the stages, through all of them."""
    x = before = x.contiguous(memory_format=torch.channels_last)
    for stage in stages:
        rows = x.shape[2]
        y = stage.convolve(x, 0, stage.out_rows(rows), rows)
        before, x = x, stage.finish(y, None, before)
    return x


class Inference:
    """A generator in eval mode as a function of images, with weights prepared once.

    On a CPU it is faster than the network itself: see :mod:`fastcyclegan.models.winograd`.
    """

    def __init__(self, net: ResnetGenerator, dtype: torch.dtype) -> None:
        self.stages, self.dtype = stages_of(net, dtype), dtype

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C', H, W) in the network's pixel range; H and W multiples of 4."""
        return torch.cat([run(self.stages, image) for image in x.to(self.dtype).split(1)])
