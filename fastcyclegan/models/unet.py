"""The U-Net generator: every level halves the image and hands its input across to the way up.

Keys and shapes are those of junyanz/pytorch-CycleGAN-and-pix2pix (``UnetGenerator``), after
Ronneberger et al., U-Net (2015), and Isola et al., Image-to-Image Translation (2017).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.models.layers import Layer, normalise
from fastcyclegan.models.network import Network, Pieces
from fastcyclegan.models.output import to_pixels

DROPPED = 0.5


def unet(
    x: torch.Tensor,
    downs: Sequence[Layer],
    ups: Sequence[Layer],
    dropped: int,
    pixel_range: str,
    training: bool,
) -> torch.Tensor:
    """(N, C, H, W) to (N, C', H, W), pixels both.

    Args:
        x: images.
        downs, ups: the way in and the way out, each in order of use; all convolutions are 4x4 with
            stride 2 and padding 1.
        dropped: how many levels drop half of their output, from the second of ``ups`` on; the
            masks are drawn from torch's generator.
        pixel_range: of the result.
        training: see :class:`fastcyclegan.models.network.Network`.
    """
    skips = []
    for layer in downs:
        x = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
        # across goes what goes down: the ReLU on the way up makes the leaky one unseen
        x = normalise(x, layer, "leaky_relu", training)
        skips.append(x)
    skips.pop()
    for level, layer in enumerate(ups):
        x = F.conv_transpose2d(torch.relu(x), layer.weight, layer.bias, stride=2, padding=1)
        x = normalise(x, layer, "none", training)
        if 1 <= level <= dropped:
            x = F.dropout(x, DROPPED, training)
        if skips:
            x = torch.cat([skips.pop(), x], 1)
    return to_pixels(x, pixel_range)


class UnetGenerator(Network):
    """Image to image of the same size, for multiples of ``2 ** num_downs`` pixels.

    Args:
        input_nc: channels of the input.
        output_nc: channels of the output.
        ngf: channels behind the first convolution; the inner ones have up to 8 ngf.
        num_downs: levels: 8 for ``unet_256``, 7 for ``unet_128``.
        norm: ``instance``, ``batch`` or ``none``; as in JZ there is none behind the two outermost
            convolutions, nor behind the innermost one of the way in.
        dropout: drop half of what the inner levels of 8 ngf channels put out, in training.
        pixel_range: of input and output, one of PIXEL_RANGES.

    Raises:
        ValueError: another norm or pixel range, or a number of levels that is not 5 to 12.
    """

    PIECES: ClassVar[Pieces] = {"unet": unet}

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        num_downs: int = 8,
        norm: str = "instance",
        dropout: bool = False,
        pixel_range: str = "tanh",
    ) -> None:
        super().__init__(
            {
                "input_nc": input_nc,
                "output_nc": output_nc,
                "ngf": ngf,
                "num_downs": num_downs,
                "norm": norm,
                "dropout": dropout,
                "pixel_range": pixel_range,
            }
        )
        if not 5 <= num_downs <= 12:
            raise ValueError(f"num_downs={num_downs}: not 5 to 12")
        self.num_downs, self.multiple = num_downs, 2**num_downs
        self.smallest = self.multiple
        self.dropped = num_downs - 5 if dropout else 0
        widths = [ngf * min(2**level, 8) for level in range(num_downs)]
        self._add_downs([input_nc, *widths])
        self._add_ups([output_nc, *widths])
        self._finish()

    def _prefix(self, level: int) -> str:
        """Of the keys of a level, outermost 0: each lies inside the one before."""
        return "model.model" + "".join(
            f".{1 if depth == 1 else 3}.model" for depth in range(1, level + 1)
        )

    def _add_downs(self, widths: list[int]) -> None:
        innermost = self.num_downs - 1
        for level in range(self.num_downs):
            index = 0 if level == 0 else 1
            normed = 0 < level < innermost
            layer = nn.Conv2d(
                widths[level], widths[level + 1], 4, stride=2, padding=1, bias=self.inner_bias
            )
            key = self._prefix(level)
            self._add(f"{key}.{index}", layer, f"{key}.{index + 1}" if normed else None)

    def _add_ups(self, widths: list[int]) -> None:
        innermost = self.num_downs - 1
        for level in reversed(range(self.num_downs)):
            joined = 1 if level == innermost else 2
            index = 3 if level in (0, innermost) else 5
            layer = nn.ConvTranspose2d(
                joined * widths[level + 1],
                widths[level],
                4,
                stride=2,
                padding=1,
                bias=self.inner_bias or level == 0,
            )
            key = self._prefix(level)
            self._add(f"{key}.{index}", layer, f"{key}.{index + 1}" if level else None)

    def _compute(self, x: torch.Tensor, layers: Sequence[Layer], pieces: Pieces) -> torch.Tensor:
        downs, ups = layers[: self.num_downs], layers[self.num_downs :]
        return pieces["unet"](x, downs, ups, self.dropped, self.pixel_range, self.training)
