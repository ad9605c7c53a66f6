"""The ResNet generator of CycleGAN: encoder, residual blocks, decoder.

Keys and shapes are those of junyanz/pytorch-CycleGAN-and-pix2pix (``ResnetGenerator``), after
Johnson et al., Perceptual Losses (2016).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.kernels.dispatch import use_triton
from fastcyclegan.kernels.instance_norm import instance_norm_pad
from fastcyclegan.kernels.reflection_pad import PADDINGS, reflection_pad
from fastcyclegan.models.folded import conv_from_few, conv_to_few
from fastcyclegan.models.layers import EPS, Layer, normalise, pad_image
from fastcyclegan.models.network import Network, Pieces
from fastcyclegan.models.output import to_pixels

UPSAMPLINGS = ("transpose", "resize")
DROPPED = 0.5

# What goes through the trunk: an image, or what one kernel wrote: its padded form, and itself.
Features = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


def encode(x: torch.Tensor, layers: Sequence[Layer], padded: bool, training: bool) -> torch.Tensor:
    """(N, C, H, W) to (N, 4 ngf, H/4, W/4): 7x7, then two 3x3 convolutions of stride 2.

    With ``padded`` the last norm and its ReLU are left to who pads.
    """
    first, down1, down2 = layers
    x = conv_from_few(reflection_pad(x, 3, impl=first.impl), first.weight, first.bias)
    x = normalise(x, first, "relu", training)
    x = F.conv2d(x, down1.weight, down1.bias, stride=2, padding=1)
    x = normalise(x, down1, "relu", training)
    x = F.conv2d(x, down2.weight, down2.bias, stride=2, padding=1)
    return x if padded else normalise(x, down2, "relu", training)


def residual_block(
    x: Features,
    first: Layer,
    second: Layer,
    padding: str,
    dropout: bool,
    residual_relu: bool,
    padded: bool,
    training: bool,
) -> Features:
    """``x`` plus two padded 3x3 convolutions of it; a ReLU behind the sum only if asked for.

    ``dropout`` stands between the two; its mask is drawn from torch's generator. With ``padded``
    also the reflection-padded form that the next block reads.
    """
    around, x = x if isinstance(x, tuple) else (pad_image(x, 1, padding, first), x)
    y = F.conv2d(around, first.weight, first.bias)
    if padding == "reflect" and not dropout:
        y = normalise(y, first, "relu", training, pad=1)
    else:
        y = normalise(y, first, "relu", training)
        y = F.dropout(y, DROPPED, training) if dropout else y
        y = pad_image(y, 1, padding, second)
    y = F.conv2d(y, second.weight, second.bias)
    around = {"residual": x, "residual_relu": residual_relu}
    if padded:
        return instance_norm_pad(y, **around, eps=EPS, impl=second.impl)
    return normalise(y, second, "none", training, **around)


def decode(
    x: torch.Tensor, layers: Sequence[Layer], upsample: str, pixel_range: str, training: bool
) -> torch.Tensor:
    """(N, 4 ngf, H/4, W/4) to (N, C, H, W) pixels: twice the size twice, then 7x7."""
    up1, up2, last = layers
    x = normalise(_enlarge(x, up1, upsample), up1, "relu", training)
    x = normalise(_enlarge(x, up2, upsample), up2, "relu", training, pad=3)
    return to_pixels(conv_to_few(x, last.weight, last.bias), pixel_range)


def _enlarge(x: torch.Tensor, layer: Layer, upsample: str) -> torch.Tensor:
    if upsample == "transpose":
        up = {"stride": 2, "padding": 1, "output_padding": 1}
        return F.conv_transpose2d(x, layer.weight, layer.bias, **up)
    x = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(reflection_pad(x, 1, impl=layer.impl), layer.weight, layer.bias)


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
        pixel_range: of input and output, one of PIXEL_RANGES.
        residual_relu: a ReLU behind each block's sum, as in hardikbansal/CycleGAN.

    Raises:
        ValueError: another norm, padding, upsampling or pixel range.
    """

    PIECES: ClassVar[Pieces] = {
        "encode": encode,
        "residual_block": residual_block,
        "decode": decode,
    }
    multiple = 4
    smallest = 8  # the blocks reflect a pixel of a quarter of the size

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
        pixel_range: str = "tanh",
        residual_relu: bool = False,
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
                "pixel_range": pixel_range,
                "residual_relu": residual_relu,
            }
        )
        if padding not in PADDINGS or upsample not in UPSAMPLINGS:
            raise ValueError(f"padding={padding!r}, upsample={upsample!r} is not supported")
        self.padding, self.dropout, self.upsample = padding, dropout, upsample
        self.residual_relu = residual_relu
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
        trunk = layers[3:-3]
        blocks = list(zip(trunk[::2], trunk[1::2], strict=True))
        # the kernels write a block's result and its reflection at once; apart from them each block
        # pads what it reads, so that all blocks are the same compiled code
        fused = self.norm == "instance" and self.padding == "reflect" and use_triton(x, self.impl)
        fused = fused and bool(blocks)
        x = pieces["encode"](x, layers[:3], fused, self.training)
        block = pieces["residual_block"]
        if fused:
            # Convolutions and kernels of ours leave a compiler nothing to do; where its code hands
            # on two outputs in one memory, it copies their gradients into that layout.
            x = instance_norm_pad(x, act="relu", eps=EPS, impl=self.impl)
            block = residual_block
        choices = self.padding, self.dropout, self.residual_relu
        for index, pair in enumerate(blocks, start=1):
            padded = fused and index < len(blocks)
            x = block(x, *pair, *choices, padded, self.training)
        return pieces["decode"](x, layers[-3:], self.upsample, self.pixel_range, self.training)
