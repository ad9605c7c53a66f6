"""The PatchGAN discriminator: one logit per overlapping patch.

Keys and shapes are those of junyanz/pytorch-CycleGAN-and-pix2pix (``NLayerDiscriminator``), after
Isola et al., Image-to-Image Translation (2017).
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from fastcyclegan.kernels.instance_norm import instance_norm_ref as instance_norm
from fastcyclegan.models.network import Network, Pieces, freeze_dead_bias

SLOPE = 0.2


def patchgan(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) to (N, 1, h, w) logits.

    Args:
        x: images.
        weights: first weight and bias, the inner weights, last weight and bias. All convolutions
            are 4x4 with zero padding 1; the last inner one and the last have stride 1, the
            others stride 2.
    """
    first, first_bias, *inner, last, last_bias = weights
    x = F.leaky_relu(F.conv2d(x, first, first_bias, stride=2, padding=1), SLOPE)
    for index, weight in enumerate(inner, start=1):
        stride = 1 if index == len(inner) else 2
        x = instance_norm(F.conv2d(x, weight, stride=stride, padding=1), "leaky_relu", SLOPE)
    return F.conv2d(x, last, last_bias, padding=1)


class NLayerDiscriminator(Network):
    """Image to a map of logits, one per patch: 70x70 pixels for three layers.

    Args:
        input_nc: channels of the input.
        ndf: channels behind the first convolution.
        n_layers: inner convolutions.
        norm: ``instance``.

    Raises:
        ValueError: another norm.
    """

    PIECES: ClassVar[Pieces] = {"patchgan": patchgan}

    def __init__(
        self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3, norm: str = "instance"
    ) -> None:
        super().__init__()
        if norm != "instance":
            raise ValueError(f"norm={norm!r} is not supported")
        self.arch = {
            "class": "NLayerDiscriminator",
            "input_nc": input_nc,
            "ndf": ndf,
            "n_layers": n_layers,
            "norm": norm,
        }
        widths = [ndf * min(2**i, 8) for i in range(n_layers + 1)]
        layers: dict[str, nn.Module] = {"0": nn.Conv2d(input_nc, ndf, 4, stride=2, padding=1)}
        for i in range(1, n_layers + 1):
            stride = 1 if i == n_layers else 2
            inner = nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1)
            layers[str(3 * i - 1)] = freeze_dead_bias(inner)
        layers[str(3 * n_layers + 2)] = nn.Conv2d(widths[-1], 1, 4, padding=1)
        self.model = nn.ModuleDict(layers)
        self._finish()

    def _compute(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], pieces: Pieces
    ) -> torch.Tensor:
        return pieces["patchgan"](x, *weights)

    @staticmethod
    def smallest_input(n_layers: int) -> int:
        """Pixels: the smallest height and width that leave every layer an output."""
        size = 1
        for stride in [1, 1] + [2] * n_layers:
            size = (size - 1) * stride + 2
        return size
