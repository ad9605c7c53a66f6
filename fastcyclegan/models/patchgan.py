"""The discriminators: PatchGAN, one logit per overlapping patch, and one logit per pixel.

Keys and shapes are those of junyanz/pytorch-CycleGAN-and-pix2pix (``NLayerDiscriminator``,
``PixelDiscriminator``), after Isola et al., Image-to-Image Translation (2017).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.models.layers import SLOPE, Layer, normalise
from fastcyclegan.models.network import Network, Pieces
from fastcyclegan.models.weighed import convolve


def patchgan(x: torch.Tensor, layers: Sequence[Layer], training: bool) -> torch.Tensor:
    """(N, C, H, W) to (N, 1, h, w) logits.

    All convolutions are 4x4 with zero padding 1; the last two of ``layers`` have stride 1, the
    others stride 2.
    """
    first, *inner, last = layers
    x = F.leaky_relu(_convolve(x, first, stride=2, padding=1, first=True), SLOPE)
    for index, layer in enumerate(inner, start=1):
        stride = 1 if index == len(inner) else 2
        x = normalise(_convolve(x, layer, stride=stride, padding=1), layer, "leaky_relu", training)
    return _convolve(x, last, padding=1)


def pixelgan(x: torch.Tensor, layers: Sequence[Layer], training: bool) -> torch.Tensor:
    """(N, C, H, W) to (N, 1, H, W) logits, by 1x1 convolutions."""
    first, inner, last = layers
    x = F.leaky_relu(_convolve(x, first, first=True), SLOPE)
    x = normalise(_convolve(x, inner), inner, "leaky_relu", training)
    return _convolve(x, last)


def _convolve(x: torch.Tensor, layer: Layer, **options: int | bool) -> torch.Tensor:
    return convolve(x, layer.weight, layer.bias, layer.weighed, **options)


class NLayerDiscriminator(Network):
    """Image to a map of logits, one per patch: 70x70 pixels for three layers.

    Args:
        input_nc: channels of the input.
        ndf: channels behind the first convolution.
        n_layers: inner convolutions.
        norm: ``instance``, ``batch`` or ``none``.

    Raises:
        ValueError: another norm.
    """

    PIECES: ClassVar[Pieces] = {"patchgan": patchgan}

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3, norm: str = "instance"
    ) -> None:
        super().__init__({"input_nc": input_nc, "ndf": ndf, "n_layers": n_layers, "norm": norm})
        widths = [ndf * min(2**i, 8) for i in range(n_layers + 1)]
        self._add("model.0", nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1))
        for i in range(1, n_layers + 1):
            options = {"stride": 1 if i == n_layers else 2, "padding": 1, "bias": self.inner_bias}
            inner = nn.Conv2d(widths[i - 1], widths[i], 4, **options)
            self._add(f"model.{3 * i - 1}", inner, f"model.{3 * i}")
        self._add(f"model.{3 * n_layers + 2}", nn.Conv2d(widths[-1], 1, 4, padding=1))
        self._finish()

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        return pieces["patchgan"](x, layers, self.training)

    @staticmethod
    def smallest_input(n_layers: int) -> int:
        """Pixels: the smallest height and width that leave every layer an output."""
        size = 1
        for stride in [1, 1] + [2] * n_layers:
            size = (size - 1) * stride + 2
        return size


class PixelDiscriminator(Network):
    """Image to a map of logits, one per pixel, of the same size.

    Args:
        input_nc: channels of the input.
        ndf: channels behind the first convolution.
        norm: ``instance``, ``batch`` or ``none``. As in JZ the last convolution has a bias only
            with ``instance``.

    Raises:
        ValueError: another norm.
    """

    PIECES: ClassVar[Pieces] = {"pixelgan": pixelgan}

    def __init__(self, input_nc: int = 3, ndf: int = 64, norm: str = "instance") -> None:
        super().__init__({"input_nc": input_nc, "ndf": ndf, "norm": norm})
        self._add("net.0", nn.Conv2d(input_nc, ndf, 1))
        self._add("net.2", nn.Conv2d(ndf, 2 * ndf, 1, bias=self.inner_bias), "net.3")
        self._add("net.5", nn.Conv2d(2 * ndf, 1, 1, bias=self.inner_bias))
        self._finish()

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        return pieces["pixelgan"](x, layers, self.training)
