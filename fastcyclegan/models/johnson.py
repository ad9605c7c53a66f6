"""The generator of fast style transfer: a ResNet with 9x9 ends, affine instance norm, five blocks.

Johnson et al., Perceptual Losses (2016), with the residual blocks of Gross and Wilber (2016):
convolution, norm, ReLU, convolution, norm, and no ReLU behind the sum. Parameter names are those of
pytorch/examples' ``TransformerNet``, which has the same layers but for its way up.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.models.folded import conv_from_few, conv_to_few
from fastcyclegan.models.layers import Layer, normalise, pad_image
from fastcyclegan.models.network import Network, Pieces
from fastcyclegan.models.output import to_pixels

JOHNSON_PADDINGS = ("start", "each")
JOHNSON_BLOCKS = 5
# Two unpadded 3x3 convolutions cost a block 2 pixels on each side; at a quarter of the size five
# blocks cost what 40 pixels of the image are.
SHAVED = 2
START = 4 * SHAVED * JOHNSON_BLOCKS


def enter(x: torch.Tensor, layers: Sequence[Layer], padding: str, training: bool) -> torch.Tensor:
    """(N, C, H, W) to (N, 4 ngf, h, w): 9x9, then two 3x3 convolutions of stride 2.

    h = H / 4 with padding ``each``; ``start`` reflects START pixels first: h = (H + 2 START) / 4.
    """
    first, down1, down2 = layers
    x = pad_image(x, START, "reflect", first) if padding == "start" else x
    x = conv_from_few(_framed(x, padding, first), first.weight, first.bias)
    x = normalise(x, first, "relu", training)
    for layer in (down1, down2):
        x = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
        x = normalise(x, layer, "relu", training)
    return x


def shaving_block(
    x: torch.Tensor, first: Layer, second: Layer, padding: str, training: bool
) -> torch.Tensor:
    """``x``, cropped if need be, plus two 3x3 convolutions of it, which are padded or shave it."""
    shaves = padding == "start"
    y = x if shaves else pad_image(x, 1, "reflect", first)
    y = F.conv2d(y, first.weight, first.bias)
    y = normalise(y, first, "relu", training, pad=0 if shaves else 1)
    y = F.conv2d(y, second.weight, second.bias)
    kept = x[:, :, SHAVED:-SHAVED, SHAVED:-SHAVED] if shaves else x
    return normalise(y, second, "none", training, residual=kept)


def leave(
    x: torch.Tensor, layers: Sequence[Layer], padding: str, pixel_range: str, training: bool
) -> torch.Tensor:
    """(N, 4 ngf, H/4, W/4) to (N, C, H, W) pixels: twice the size twice, then 9x9."""
    *ups, last = layers
    for layer in ups:
        up = {"stride": 2, "padding": 1, "output_padding": 1}
        x = F.conv_transpose2d(x, layer.weight, layer.bias, **up)
        x = normalise(x, layer, "relu", training)
    x = conv_to_few(_framed(x, padding, last), last.weight, last.bias)
    return to_pixels(x, pixel_range)


def _framed(x: torch.Tensor, padding: str, layer: Layer) -> torch.Tensor:
    """``x`` with what a 9x9 convolution needs around it."""
    return pad_image(x, 4, "zero" if padding == "start" else "reflect", layer)


class JohnsonGenerator(Network):
    """Image to image of the same size, for heights and widths that are multiples of 4.

    Args:
        input_nc: channels of the input.
        output_nc: channels of the output.
        ngf: channels behind the first convolution; the blocks have 4 ngf.
        norm: ``instance`` (with scale and shift), ``batch`` or ``none``.
        padding: ``start`` reflects 40 pixels at the input, which the unpadded residual blocks use
            up, and leaves the 9x9 convolutions zeros; ``each`` reflects in front of every one of
            them.
        pixel_range: of input and output, one of PIXEL_RANGES.

    Raises:
        ValueError: another norm, padding or pixel range.
    """

    PIECES: ClassVar[Pieces] = {"enter": enter, "shaving_block": shaving_block, "leave": leave}
    multiple = 4
    affine = True

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 32,
        norm: str = "instance",
        padding: str = "start",
        pixel_range: str = "tanh",
    ) -> None:
        super().__init__(
            {
                "input_nc": input_nc,
                "output_nc": output_nc,
                "ngf": ngf,
                "norm": norm,
                "padding": padding,
                "pixel_range": pixel_range,
            }
        )
        if padding not in JOHNSON_PADDINGS:
            raise ValueError(f"padding={padding!r}: not one of {', '.join(JOHNSON_PADDINGS)}")
        self.padding = padding
        self.smallest = self.smallest_input(padding)
        bias = {"bias": self.inner_bias}
        down = {"stride": 2, "padding": 1, **bias}
        self._add("conv1.conv2d", nn.Conv2d(input_nc, ngf, 9, **bias), "in1")
        self._add("conv2.conv2d", nn.Conv2d(ngf, 2 * ngf, 3, **down), "in2")
        self._add("conv3.conv2d", nn.Conv2d(2 * ngf, 4 * ngf, 3, **down), "in3")
        for block in range(1, JOHNSON_BLOCKS + 1):
            for part in (1, 2):
                layer = nn.Conv2d(4 * ngf, 4 * ngf, 3, **bias)
                self._add(f"res{block}.conv{part}.conv2d", layer, f"res{block}.in{part}")
        up = {"output_padding": 1, **down}
        self._add("deconv1.conv2d", nn.ConvTranspose2d(4 * ngf, 2 * ngf, 3, **up), "in4")
        self._add("deconv2.conv2d", nn.ConvTranspose2d(2 * ngf, ngf, 3, **up), "in5")
        self._add("deconv3.conv2d", nn.Conv2d(ngf, output_nc, 9))
        self._finish()

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        x = pieces["enter"](x, layers[:3], self.padding, self.training)
        trunk = layers[3:-3]
        for first, second in zip(trunk[::2], trunk[1::2], strict=True):
            x = pieces["shaving_block"](x, first, second, self.padding, self.training)
        return pieces["leave"](x, layers[-3:], self.padding, self.pixel_range, self.training)

    @classmethod
    def smallest_input(cls, padding: str) -> int:
        """Pixels: the smallest height and width that have more to reflect than is reflected."""
        return START + cls.multiple if padding == "start" else 2 * cls.multiple
