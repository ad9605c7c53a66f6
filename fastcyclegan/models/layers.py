"""A convolution and the normalisation behind it, as the tensors that a network's pieces take."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from fastcyclegan.kernels.instance_norm import instance_norm_ref as instance_norm

NORMS = ("instance", "batch", "none")
SLOPE = 0.2
EPS = 1e-5
MOMENTUM = 0.1


class Layer(NamedTuple):
    """One convolution, and what of its norm is a tensor or a choice.

    Attributes:
        weight: of the convolution.
        bias: of the convolution; None where it has none, or where the norm makes it dead.
        norm: one of NORMS; ``none`` also where no norm follows.
        scale, shift: (C,) weight and bias of a batch norm, in at least fp32.
        mean, var: (C,) running statistics of a batch norm, updated in place in training.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    norm: str = "none"
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None


def normalise(
    x: torch.Tensor, layer: Layer, act: str = "none", training: bool = True
) -> torch.Tensor:
    """The norm of ``layer`` over (N, C, H, W), then ``act``: none, relu or leaky_relu.

    A batch norm uses the statistics of the batch in training, and moves the running ones towards
    them by 0.1 (the variance unbiased, as torch does); outside training it uses the running ones.
    Statistics are computed in at least fp32.
    """
    if layer.norm == "instance":
        return instance_norm(x, act, SLOPE, EPS)
    if layer.norm == "batch":
        running = (layer.mean, layer.var)
        x = F.batch_norm(x, *running, layer.scale, layer.shift, training, MOMENTUM, EPS)
    if act == "relu":
        return torch.relu(x)
    return F.leaky_relu(x, SLOPE) if act == "leaky_relu" else x
