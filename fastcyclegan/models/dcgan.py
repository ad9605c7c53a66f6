"""DCGAN: a generator of images from noise, and its discriminator.

Keys and shapes are those of pytorch/examples (``dcgan/main.py``), after Radford et al.,
Unsupervised Representation Learning with Deep Convolutional GANs (2016). Other sizes than its 64
pixels have more or fewer of the inner layers, each with twice the channels of the next larger map.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.config import DCGAN_SIZES
from fastcyclegan.models.layers import SLOPE, Layer, normalise
from fastcyclegan.models.network import Network, Pieces
from fastcyclegan.models.output import to_pixels

SEED_SIZE = 4


def dcgan_generator(
    z: torch.Tensor, layers: Sequence[Layer], pixel_range: str, training: bool
) -> torch.Tensor:
    """(N, nz, 1, 1) to (N, C, size, size) in ``pixel_range``.

    The first of ``layers`` makes 4x4 pixels of one: a product of matrices. The others are 4x4
    transposed convolutions of stride 2 and padding 1.
    """
    first, *inner, last = layers
    channels = first.weight.shape[1]
    x = z.flatten(1) @ first.weight.permute(0, 2, 3, 1).flatten(1)
    x = x.view(-1, SEED_SIZE, SEED_SIZE, channels).permute(0, 3, 1, 2)
    x = normalise(x, first, "relu", training)
    for layer in inner:
        x = F.conv_transpose2d(x, layer.weight, stride=2, padding=1)
        x = normalise(x, layer, "relu", training)
    return to_pixels(F.conv_transpose2d(x, last.weight, stride=2, padding=1), pixel_range)


def dcgan_discriminator(x: torch.Tensor, layers: Sequence[Layer], training: bool) -> torch.Tensor:
    """(N, C, size, size) to (N, 1, 1, 1) logits.

    All of ``layers`` but the last are 4x4 convolutions of stride 2 and padding 1; the last makes
    one number of 4x4 pixels: a product of matrices.
    """
    first, *inner, last = layers
    x = F.leaky_relu(F.conv2d(x, first.weight, stride=2, padding=1), SLOPE)
    for layer in inner:
        x = F.conv2d(x, layer.weight, stride=2, padding=1)
        x = normalise(x, layer, "leaky_relu", training)
    flat = x.permute(0, 2, 3, 1).flatten(1)
    return (flat @ last.weight.permute(0, 2, 3, 1).flatten(1).t()).view(-1, 1, 1, 1)


def _widths(size: int, narrowest: int, norm: str) -> list[int]:
    """Channels of the maps of 4, 8, ... size / 2 pixels. Raises ValueError."""
    if size not in DCGAN_SIZES:
        raise ValueError(f"size={size}: not one of {', '.join(map(str, DCGAN_SIZES))}")
    if norm != "batch":
        raise ValueError(f"norm={norm!r}: a DCGAN has batch norm")
    maps = (size // SEED_SIZE).bit_length() - 1
    return [narrowest * 2**i for i in reversed(range(maps))]


class DCGANGenerator(Network):
    """Noise to images.

    Args:
        nz: length of the noise.
        ngf: channels in front of the last convolution.
        output_nc: channels of the images.
        size: height and width of the images, one of DCGAN_SIZES.
        norm: ``batch``.
        pixel_range: of the images, one of PIXEL_RANGES.

    Raises:
        ValueError: another size, norm or pixel range.
    """

    PIECES: ClassVar[Pieces] = {"dcgan_generator": dcgan_generator}

    def __init__(
        self,
        nz: int = 100,
        ngf: int = 64,
        output_nc: int = 3,
        size: int = 64,
        norm: str = "batch",
        pixel_range: str = "tanh",
    ) -> None:
        widths = _widths(size, ngf, norm)
        shape = {"nz": nz, "ngf": ngf, "output_nc": output_nc, "size": size}
        super().__init__({**shape, "norm": norm, "pixel_range": pixel_range})
        first = nn.ConvTranspose2d(nz, widths[0], SEED_SIZE, bias=False)
        self._add("main.0", first, "main.1")
        for i in range(1, len(widths)):
            options = {"stride": 2, "padding": 1, "bias": False}
            inner = nn.ConvTranspose2d(widths[i - 1], widths[i], 4, **options)
            self._add(f"main.{3 * i}", inner, f"main.{3 * i + 1}")
        last = nn.ConvTranspose2d(widths[-1], output_nc, 4, stride=2, padding=1, bias=False)
        self._add(f"main.{3 * len(widths)}", last)
        self._finish()

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        return pieces["dcgan_generator"](x, layers, self.pixel_range, self.training)


class DCGANDiscriminator(Network):
    """Images to one logit each; pytorch/examples' module gives the sigmoid of it.

    Args:
        input_nc: channels of the images.
        ndf: channels behind the first convolution.
        size: height and width of the images, one of DCGAN_SIZES.
        norm: ``batch``.

    Raises:
        ValueError: another size or norm.
    """

    PIECES: ClassVar[Pieces] = {"dcgan_discriminator": dcgan_discriminator}

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, size: int = 64, norm: str = "batch"
    ) -> None:
        widths = _widths(size, ndf, norm)[::-1]
        super().__init__({"input_nc": input_nc, "ndf": ndf, "size": size, "norm": norm})
        options = {"stride": 2, "padding": 1, "bias": False}
        self._add("main.0", nn.Conv2d(input_nc, ndf, 4, **options))
        for i in range(1, len(widths)):
            inner = nn.Conv2d(widths[i - 1], widths[i], 4, **options)
            self._add(f"main.{3 * i - 1}", inner, f"main.{3 * i}")
        last = nn.Conv2d(widths[-1], 1, SEED_SIZE, bias=False)
        self._add(f"main.{3 * len(widths) - 1}", last)
        self._finish()

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        return pieces["dcgan_discriminator"](x, layers, self.training)
