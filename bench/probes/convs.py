"""cuDNN's bf16 convolutions on the layers of ResNet-9 and PatchGAN at 256x256, all passes.

Two variants rewrite a 7x7 convolution with three channels on one side as a 7x1 convolution: the
stem over windows of 8 neighbouring pixels of 4 channels (packing not timed), to-RGB with 7 taps of
3 channels as 21 (padded to 24) output channels, to be summed along the row (sum not timed).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from bench.probes.timing import (
    Body,
    Budget,
    free_memory,
    graph_us,
    rotate,
    trace_kernels,
)

PASSES = ("fprop", "dgrad", "wgrad")
INPUT_SETS = 4
_FORMATS = {"channels_last": torch.channels_last, "NCHW": torch.contiguous_format}
REQUIRED_SECONDS = 3.0


@dataclass(frozen=True)
class Layer:
    """One convolution; a variant names in `nominal` the layer it stands for, whose work counts."""

    name: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    size: tuple[int, int]
    stride: int = 1
    padding: int = 0
    transposed: bool = False
    nominal: Layer | None = None

    def out_size(self) -> tuple[int, int]:
        if self.transposed:
            return (2 * self.size[0], 2 * self.size[1])
        return tuple(
            (s + 2 * self.padding - k) // self.stride + 1
            for s, k in zip(self.size, self.kernel, strict=True)
        )

    def macs_per_image(self) -> int:
        if self.nominal:
            return self.nominal.macs_per_image()
        height, width = self.size if self.transposed else self.out_size()
        taps = self.kernel[0] * self.kernel[1]
        return self.in_channels * self.out_channels * taps * height * width


def _square(name: str, cin: int, cout: int, k: int, size: int, **kwargs) -> Layer:
    return Layer(name, cin, cout, (k, k), (size, size), **kwargs)


_STEM = _square("G 7x7 3->64 valid", 3, 64, 7, 262)
_TRUNK = _square("G 3x3 256->256 valid", 256, 256, 3, 66)
_TO_RGB = _square("G 7x7 64->3 valid", 64, 3, 7, 262)
_FIRST = _square("D 4x4s2 3->64", 3, 64, 4, 256, stride=2, padding=1)
_LAST = _square("D 4x4 512->1", 512, 1, 4, 31, padding=1)

LAYERS = [
    _TRUNK,
    _STEM,
    _square("G 3x3s2 64->128", 64, 128, 3, 256, stride=2, padding=1),
    _square("G 3x3s2 128->256", 128, 256, 3, 128, stride=2, padding=1),
    _square("G convT3x3s2 256->128", 256, 128, 3, 64, stride=2, padding=1, transposed=True),
    _square("G convT3x3s2 128->64", 128, 64, 3, 128, stride=2, padding=1, transposed=True),
    _TO_RGB,
    _FIRST,
    _square("D 4x4s2 64->128", 64, 128, 4, 128, stride=2, padding=1),
    _square("D 4x4s2 128->256", 128, 256, 4, 64, stride=2, padding=1),
    _square("D 4x4 256->512", 256, 512, 4, 32, padding=1),
    _LAST,
]

VARIANTS = [
    _square("G 3x3 256->256, padding 1 on 64x64", 256, 256, 3, 64, padding=1),
    replace(_STEM, name="G 7x7 3->64, C padded to 4", in_channels=4, nominal=_STEM),
    replace(_STEM, name="G 7x7 3->64, C padded to 8", in_channels=8, nominal=_STEM),
    Layer("G 7x7 3->64 as 7x1 over 8-pixel windows", 32, 64, (7, 1), (262, 256), nominal=_STEM),
    replace(_TO_RGB, name="G 7x7 64->3, K padded to 4", out_channels=4, nominal=_TO_RGB),
    replace(_TO_RGB, name="G 7x7 64->3, K padded to 8", out_channels=8, nominal=_TO_RGB),
    Layer("G 7x7 64->3 as 7x1 64->24", 64, 24, (7, 1), (262, 262), nominal=_TO_RGB),
    replace(_FIRST, name="D 4x4s2 3->64, C padded to 4", in_channels=4, nominal=_FIRST),
    replace(_FIRST, name="D 4x4s2 3->64, C padded to 8", in_channels=8, nominal=_FIRST),
    replace(_LAST, name="D 4x4 512->1, K padded to 8", out_channels=8, nominal=_LAST),
]


def _tensors(layer: Layer, batch: int, device: torch.device, layout: torch.memory_format) -> tuple:
    """Random x, weight and dy of the layer in bf16 and the given layout."""
    channels = (layer.in_channels, layer.out_channels)
    filters = channels if layer.transposed else channels[::-1]
    shapes = (
        (batch, layer.in_channels, *layer.size),
        (*filters, *layer.kernel),
        (batch, layer.out_channels, *layer.out_size()),
    )
    return tuple(
        torch.randn(shape, device=device, dtype=torch.bfloat16).to(memory_format=layout)
        for shape in shapes
    )


def _passes(layer: Layer) -> dict:
    """The three passes as functions of (x, weight, dy)."""
    stride, padding = [layer.stride] * 2, [layer.padding] * 2
    extra = [int(layer.transposed)] * 2
    tail = (stride, padding, [1, 1], layer.transposed, extra, 1)

    def fprop(x, weight, dy):
        return torch.ops.aten.convolution(x, weight, None, *tail)

    def dgrad(x, weight, dy):
        mask = [True, False, False]
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *tail, mask)

    def wgrad(x, weight, dy):
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(dy, x, weight, None, *tail, mask)

    return dict(zip(PASSES, (fprop, dgrad, wgrad), strict=True))


def measure(
    layer: Layer, batch: int, device: torch.device, layout: str, ceiling: float | None
) -> dict:
    """One row: us, TFLOP/s and share of the matmul ceiling for each pass."""
    sets = [_tensors(layer, batch, device, _FORMATS[layout]) for _ in range(INPUT_SETS)]
    flop = 2 * batch * layer.macs_per_image()
    row: dict = {"layer": layer.name, "N": batch, "layout": layout, "GFLOP": round(flop / 1e9, 2)}
    for name, function in _passes(layer).items():
        body = rotate(function, sets)
        us = graph_us(body, device)
        rate = flop / us["median"] / 1e6
        row[name] = {"us": us, "TFLOP_per_s": round(rate, 1)}
        if ceiling:
            row[name]["of_ceiling"] = round(rate / ceiling, 3)
    del sets
    free_memory(device)
    return row


def conv_kernels(device: torch.device, budget: Budget, tiny: bool) -> dict:
    """Which kernels one call of each pass launches, at N = 2, with the profiler's us."""
    section = {}
    cases = [(layer, "channels_last") for layer in LAYERS + VARIANTS]
    cases += [(layer, "NCHW") for layer in (_TRUNK, _TO_RGB)]
    for layer, layout in cases[:2] if tiny else cases:
        tensors = _tensors(_shrink(layer) if tiny else layer, 2, device, _FORMATS[layout])
        section[f"{layer.name} {layout}"] = {
            name: _kernel_names(partial(function, *tensors), device)
            for name, function in _passes(layer).items()
        }
    return section


def _kernel_names(body: Body, device: torch.device) -> list[str]:
    events = trace_kernels(body, device)
    return [f"{e['name'][:110]} {e['dur_us']:.1f} us" for e in events if e["dur_us"] > 0]


def _shrink(layer: Layer) -> Layer:
    """The same layer at a size that a CPU runs at once."""
    cin, cout = (min(c, 8) for c in (layer.in_channels, layer.out_channels))
    size = tuple(max(12, s // 16) for s in layer.size)
    return replace(layer, in_channels=cin, out_channels=cout, size=size)


def _table(rows: list[tuple], device, budget: Budget, tiny: bool, ceiling: float | None) -> dict:
    section: dict = {"dtype": "bf16", "rows": [], "left_out": []}
    for layer, batch, layout in rows:
        label = f"{layer.name} N={batch} {layout}"
        if budget.left() < REQUIRED_SECONDS:
            section["left_out"].append(label)
            continue
        case = _shrink(layer) if tiny else layer
        try:
            section["rows"].append(measure(case, batch, device, layout, ceiling))
        except Exception as error:
            section["rows"].append({"layer": layer.name, "N": batch, "error": str(error)[:300]})
    return section


def convs_first(device, budget: Budget, tiny: bool, ceiling: float | None = None) -> dict:
    """The batch sizes that decide the design, and the variants of the three-channel layers."""
    rows = [(layer, n, "channels_last") for n in (2, 1, 8) for layer in LAYERS]
    rows += [(layer, n, "channels_last") for n in (2, 8) for layer in VARIANTS]
    rows += [(layer, n, "NCHW") for n in (2, 8) for layer in (_TRUNK, _TO_RGB, _STEM)]
    return _table(rows[:4] if tiny else rows, device, budget, tiny, ceiling)


def convs_rest(device, budget: Budget, tiny: bool, ceiling: float | None = None) -> dict:
    """The remaining batch sizes."""
    rows = [(layer, n, "channels_last") for n in (4, 3, 16) for layer in LAYERS]
    rows += [(layer, n, "channels_last") for n in (1, 4, 3, 16) for layer in VARIANTS]
    rows += [(layer, n, "NCHW") for n in (1, 4) for layer in (_TRUNK, _TO_RGB)]
    return _table(rows[::13] if tiny else rows, device, budget, tiny, ceiling)
