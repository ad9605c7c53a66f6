"""The ResNet generator of CycleGAN: encoder, residual blocks, decoder.

Keys and shapes are those of junyanz/pytorch-CycleGAN-and-pix2pix (``ResnetGenerator``), after
Johnson et al., Perceptual Losses (2016).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.kernels.reflection_pad import PADDINGS, pad_ref
from fastcyclegan.models.folded import conv_from_few, conv_to_few
from fastcyclegan.models.layers import Layer, normalise
from fastcyclegan.models.network import Network, Pieces

UPSAMPLINGS = ("transpose", "resize")
DROPPED = 0.5


def encode(x: torch.Tensor, layers: Sequence[Layer], training: bool) -> torch.Tensor:
    """(N, C, H, W) to (N, 4 ngf, H/4, W/4): 7x7, then two 3x3 convolutions of stride 2."""
    first, down1, down2 = layers
    x = conv_from_few(pad_ref(x, 3), first.weight, first.bias)
    x = normalise(x, first, "relu", training)
    for layer in (down1, down2):
        x = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
        x = normalise(x, layer, "relu", training)
    return x


def residual_block(
    x: torch.Tensor, first: Layer, second: Layer, padding: str, dropout: bool, training: bool
) -> torch.Tensor:
    """``x`` plus two padded 3x3 convolutions of it; no ReLU behind the sum.

    ``dropout`` stands between the two; its mask is drawn from torch's generator.
    """
    y = F.conv2d(pad_ref(x, 1, padding), first.weight, first.bias)
    y = normalise(y, first, "relu", training)
    if dropout:
        y = F.dropout(y, DROPPED, training)
    y = F.conv2d(pad_ref(y, 1, padding), second.weight, second.bias)
    return x + normalise(y, second, "none", training)


def decode(x: torch.Tensor, layers: Sequence[Layer], upsample: str, training: bool) -> torch.Tensor:
    """(N, 4 ngf, H/4, W/4) to (N, C, H, W) in [-1, 1]: twice the size twice, then 7x7 and tanh."""
    *ups, last = layers
    for layer in ups:
        x = normalise(_enlarge(x, layer, upsample), layer, "relu", training)
    return torch.tanh(conv_to_few(pad_ref(x, 3), last.weight, last.bias))


def _enlarge(x: torch.Tensor, layer: Layer, upsample: str) -> torch.Tensor:
    if upsample == "transpose":
        up = {"stride": 2, "padding": 1, "output_padding": 1}
        return F.conv_transpose2d(x, layer.weight, layer.bias, **up)
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(pad_ref(x, 1), layer.weight, layer.bias)


class ResnetGenerator(Network):
    """Image to image of the same size, for heights and widths that are multiples of 4.

    Args:
        input_nc: channels of the input.
        output_nc: channels of the output.
        ngf: channels behind the first convolution; the trunk has 4 ngf.
        n_blocks: residual blocks.
        norm: ``instance``, ``batch`` or ``none``.
        padding: of the residual blocks: ``reflect``, ``replicate`` or ``zero``.
        dropout: drop half of what is between the two convolutions of a block, in training.
        upsample: ``transpose`` for transposed convolutions, as JZ; ``resize`` for the nearest pixel
            and a reflection-padded 3x3 convolution, which leaves no checkerboard (Odena et al.,
            2016), under the keys that eriklindernoren/PyTorch-GAN gives to such a decoder.

    Raises:
        ValueError: another norm, padding or upsampling.
    """

    PIECES: ClassVar[Pieces] = {
        "encode": encode,
        "residual_block": residual_block,
        "decode": decode,
    }
    multiple = 4

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        norm: str = "instance",
        padding: str = "reflect",
        dropout: bool = False,
        upsample: str = "transpose",
    ) -> None:
        super().__init__(
            {
                "input_nc": input_nc,
                "output_nc": output_nc,
                "ngf": ngf,
                "n_blocks": n_blocks,
                "norm": norm,
                "padding": padding,
                "dropout": dropout,
                "upsample": upsample,
            }
        )
        if padding not in PADDINGS or upsample not in UPSAMPLINGS:
            raise ValueError(f"padding={padding!r}, upsample={upsample!r} is not supported")
        self.padding, self.dropout, self.upsample = padding, dropout, upsample
        self._add_encoder(input_nc, ngf)
        for index in range(10, 10 + n_blocks):
            self._add_block(f"model.{index}.conv_block", 4 * ngf)
        self._add_decoder(10 + n_blocks, ngf, output_nc)
        self._finish()

    def _add_encoder(self, input_nc: int, ngf: int) -> None:
        bias = {"bias": self.inner_bias}
        down = {"stride": 2, "padding": 1, **bias}
        self._add("model.1", nn.Conv2d(input_nc, ngf, 7, **bias), "model.2")
        self._add("model.4", nn.Conv2d(ngf, 2 * ngf, 3, **down), "model.5")
        self._add("model.7", nn.Conv2d(2 * ngf, 4 * ngf, 3, **down), "model.8")

    def _add_block(self, key: str, width: int) -> None:
        """JZ numbers a block's padding, convolution, norm, ReLU and dropout in one sequence."""
        pads = 0 if self.padding == "zero" else 1
        first = pads
        second = first + 3 + int(self.dropout) + pads
        for index in (first, second):
            convolution = nn.Conv2d(width, width, 3, bias=self.inner_bias)
            self._add(f"{key}.{index}", convolution, f"{key}.{index + 1}")

    def _add_decoder(self, index: int, ngf: int, output_nc: int) -> None:
        up = {"stride": 2, "padding": 1, "output_padding": 1}
        for wide, narrow in ((4 * ngf, 2 * ngf), (2 * ngf, ngf)):
            if self.upsample == "transpose":
                layer = nn.ConvTranspose2d(wide, narrow, 3, **up, bias=self.inner_bias)
            else:
                index += 1  # the enlargement has a number of its own
                layer = nn.Conv2d(wide, narrow, 3, bias=self.inner_bias)
            self._add(f"model.{index}", layer, f"model.{index + 1}")
            index += 3
        self._add(f"model.{index + 1}", nn.Conv2d(ngf, output_nc, 7))

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        x = pieces["encode"](x, layers[:3], self.training)
        trunk = layers[3:-3]
        for first, second in zip(trunk[::2], trunk[1::2], strict=True):
            x = pieces["residual_block"](
                x, first, second, self.padding, self.dropout, self.training
            )
        return pieces["decode"](x, layers[-3:], self.upsample, self.training)
