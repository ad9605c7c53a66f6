"""What generators and discriminators have in common: weights apart from the computation.

A network computes with a flat sequence of weights that the caller may pass in, so that a training
step can use copies in bf16, or detached ones that get no gradient, without touching the module.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

Pieces = Mapping[str, Callable[..., torch.Tensor]]


class Network(nn.Module):
    """Base class of all networks.

    Attributes:
        PIECES: the plain functions that the network is made of, by name.
        pieces: those that ``compute`` calls: PIECES, or compiled ones in their place. Calling the
            module itself always uses PIECES.
        arch: JSON-able description, enough for :func:`fastcyclegan.models.build`.
    """

    PIECES: ClassVar[Pieces]
    arch: dict[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self.pieces = self.PIECES

    def live_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that the output depends on, by state_dict key, in order of use."""
        return ((name, p) for name, p in self.named_parameters() if name in self._live)

    def _finish(self) -> None:
        """Called at the end of construction: note what is live, and go to channels_last."""
        self._live = frozenset(name for name, p in self.named_parameters() if p.requires_grad)
        self.to(memory_format=torch.channels_last)

    def compute(self, x: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The network's output for ``x``, computed with ``weights`` instead of its own.

        Args:
            x: (N, C, H, W), best in channels_last memory.
            weights: one tensor per live parameter, in that order, in the dtype of ``x``.
        """
        return self._compute(x, weights, self.pieces)

    def _compute(
        self, x: torch.Tensor, weights: Sequence[torch.Tensor], pieces: Pieces
    ) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output for ``x`` (N, C, H, W), with its own weights in the dtype of x."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self._compute(x, [p.to(x.dtype) for _, p in self.live_parameters()], self.PIECES)


def freeze_dead_bias(convolution: nn.Module) -> nn.Module:
    """Mark a bias in front of an affine-free instance norm: kept as a key, never computed with."""
    convolution.bias.requires_grad_(False)
    return convolution


@torch.no_grad()
def init_weights(net: nn.Module, gain: float, generator: torch.Generator) -> None:
    """Draw every convolution weight from N(0, gain^2) and set every bias to 0, as JZ does.

    Args:
        net: on the CPU, so that a seed means the same on every device.
        gain: standard deviation.
        generator: a CPU generator.
    """
    for name, parameter in net.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        else:
            parameter.normal_(0.0, gain, generator=generator)
