"""The ResNet generator of CycleGAN: encoder, residual blocks, decoder.

Keys and shapes are those of junyanz/pytorch-CycleGAN-and-pix2pix (``ResnetGenerator``), after
Johnson et al., Perceptual Losses (2016).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.kernels.instance_norm import instance_norm_ref as instance_norm
from fastcyclegan.kernels.reflection_pad import PADDINGS, pad_ref
from fastcyclegan.models.network import Network, Pieces, freeze_dead_bias


def encode(
    x: torch.Tensor, w_in: torch.Tensor, w_down1: torch.Tensor, w_down2: torch.Tensor
) -> torch.Tensor:
    """(N, C, H, W) to (N, 4 ngf, H/4, W/4): 7x7, then two 3x3 convolutions of stride 2."""
    x = instance_norm(F.conv2d(pad_ref(x, 3), w_in), "relu")
    x = instance_norm(F.conv2d(x, w_down1, stride=2, padding=1), "relu")
    return instance_norm(F.conv2d(x, w_down2, stride=2, padding=1), "relu")


def residual_block(
    x: torch.Tensor, w1: torch.Tensor, w2: torch.Tensor, padding: str
) -> torch.Tensor:
    """``x`` plus two padded 3x3 convolutions of it; no ReLU behind the sum."""
    y = instance_norm(F.conv2d(pad_ref(x, 1, padding), w1), "relu")
    return x + instance_norm(F.conv2d(pad_ref(y, 1, padding), w2))


def decode(
    x: torch.Tensor,
    w_up1: torch.Tensor,
    w_up2: torch.Tensor,
    w_out: torch.Tensor,
    b_out: torch.Tensor,
) -> torch.Tensor:
    """(N, 4 ngf, H/4, W/4) to (N, C, H, W) in [-1, 1]: two transposed convolutions, 7x7, tanh."""
    up = {"stride": 2, "padding": 1, "output_padding": 1}
    x = instance_norm(F.conv_transpose2d(x, w_up1, **up), "relu")
    x = instance_norm(F.conv_transpose2d(x, w_up2, **up), "relu")
    return torch.tanh(F.conv2d(pad_ref(x, 3), w_out, b_out))


class ResnetBlock(nn.Module):
    """The weights of one residual block, under JZ's indices."""

    def __init__(self, channels: int, padding: str) -> None:
        super().__init__()
        second = "3" if padding == "zero" else "5"
        first = "0" if padding == "zero" else "1"
        self.conv_block = nn.ModuleDict(
            {key: freeze_dead_bias(nn.Conv2d(channels, channels, 3)) for key in (first, second)}
        )


class ResnetGenerator(Network):
    """Image to image of the same size, for heights and widths that are multiples of 4.

    Args:
        input_nc: channels of the input.
        output_nc: channels of the output.
        ngf: channels behind the first convolution; the trunk has 4 ngf.
        n_blocks: residual blocks.
        norm: ``instance``.
        padding: of the residual blocks: ``reflect``, ``replicate`` or ``zero``.

    Raises:
        ValueError: another norm or padding.
    """

    PIECES: ClassVar[Pieces] = {
        "encode": encode,
        "residual_block": residual_block,
        "decode": decode,
    }

    def __init__(
        self,
        input_nc: int = 3,
        output_nc: int = 3,
        ngf: int = 64,
        n_blocks: int = 9,
        norm: str = "instance",
        padding: str = "reflect",
    ) -> None:
        super().__init__()
        if norm != "instance" or padding not in PADDINGS:
            raise ValueError(f"norm={norm!r}, padding={padding!r} is not supported")
        self.arch = {
            "class": "ResnetGenerator",
            "input_nc": input_nc,
            "output_nc": output_nc,
            "ngf": ngf,
            "n_blocks": n_blocks,
            "norm": norm,
            "padding": padding,
        }
        self.padding = padding
        self.model = nn.ModuleDict(_layers(input_nc, output_nc, ngf, n_blocks, padding))
        self._finish()

    def _compute(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], pieces: Pieces
    ) -> torch.Tensor:
        x = pieces["encode"](x, *weights[:3])
        trunk = weights[3:-4]
        for w1, w2 in zip(trunk[::2], trunk[1::2], strict=True):
            x = pieces["residual_block"](x, w1, w2, self.padding)
        return pieces["decode"](x, *weights[-4:])


def _layers(
    input_nc: int, output_nc: int, ngf: int, n_blocks: int, padding: str
) -> dict[str, nn.Module]:
    """The layers that have weights, by JZ's index: norms, activations and pads only count."""
    up = {"stride": 2, "padding": 1, "output_padding": 1}
    layers = {
        "1": freeze_dead_bias(nn.Conv2d(input_nc, ngf, 7)),
        "4": freeze_dead_bias(nn.Conv2d(ngf, 2 * ngf, 3, stride=2, padding=1)),
        "7": freeze_dead_bias(nn.Conv2d(2 * ngf, 4 * ngf, 3, stride=2, padding=1)),
    }
    for index in range(10, 10 + n_blocks):
        layers[str(index)] = ResnetBlock(4 * ngf, padding)
    after = 10 + n_blocks
    layers[str(after)] = freeze_dead_bias(nn.ConvTranspose2d(4 * ngf, 2 * ngf, 3, **up))
    layers[str(after + 3)] = freeze_dead_bias(nn.ConvTranspose2d(2 * ngf, ngf, 3, **up))
    layers[str(after + 7)] = nn.Conv2d(ngf, output_nc, 7)
    return layers
