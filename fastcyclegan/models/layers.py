"""A convolution and the normalisation behind it, as the tensors that a network's pieces take."""

from typing import NamedTuple

import torch
from torch.nn import functional as F

from fastcyclegan.kernels.batch_norm import batch_norm
from fastcyclegan.kernels.instance_norm import instance_norm
from fastcyclegan.kernels.reflection_pad import pad_ref, reflection_pad
from fastcyclegan.kernels.sync_batch_norm import sync_batch_norm

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
        scale, shift: (C,) weight and bias of a norm, in at least fp32; None without.
        mean, var: (C,) running statistics of a batch norm, updated in place in training.
        impl: of the fused ops: ``ref``, ``triton``, or None for Triton on CUDA alone.
        weighed: see :func:`fastcyclegan.models.weighed.convolve`; a discriminator's.
        sync: whether a batch norm in training is over the images of all processes.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    norm: str = "none"
    scale: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    var: torch.Tensor | None = None
    impl: str | None = None
    weighed: int | None = None
    sync: bool = False


def normalise(
    x: torch.Tensor,
    layer: Layer,
    act: str = "none",
    training: bool = True,
    *,
    residual: torch.Tensor | None = None,
    residual_relu: bool = False,
    pad: int = 0,
) -> torch.Tensor:
    """The norm of ``layer`` over (N, C, H, W), and what stands around it.

    A batch norm uses the statistics of the batch in training, and moves the running ones towards
    them by 0.1 (the variance unbiased, as torch does); outside training it uses the running ones.
    Statistics are computed in at least fp32.

    Args:
        x: what the convolution of ``layer`` put out.
        layer: the convolution.
        act: none, relu or leaky_relu; only none with a residual.
        training: see :class:`fastcyclegan.models.network.Network`.
        residual: (N, C, H, W), added to what is normalised.
        residual_relu: a ReLU behind the sum.
        pad: pixels of reflection around the result.
    """
    if layer.norm == "instance":
        around = {"residual": residual, "residual_relu": residual_relu, "pad": pad}
        affine = {"weight": layer.scale, "bias": layer.shift, "impl": layer.impl}
        return instance_norm(x, act=act, slope=SLOPE, eps=EPS, **around, **affine)
    if layer.norm == "batch":
        x, act = _batch_norm(x, layer, act, training), "none"
    if act == "relu":
        x = torch.relu(x)
    elif act == "leaky_relu":
        x = F.leaky_relu(x, SLOPE)
    if residual is not None:
        x = torch.relu(x + residual) if residual_relu else x + residual
    return reflection_pad(x, pad, impl=layer.impl) if pad else x


def _batch_norm(x: torch.Tensor, layer: Layer, act: str, training: bool) -> torch.Tensor:
    tensors = layer.scale, layer.shift, layer.mean, layer.var
    how = {"momentum": MOMENTUM, "eps": EPS, "impl": layer.impl, "act": act, "slope": SLOPE}
    if layer.sync and training:
        return sync_batch_norm(x, *tensors, **how)
    return batch_norm(x, *tensors, training=training, **how)


def pad_image(x: torch.Tensor, pad: int, padding: str, layer: Layer) -> torch.Tensor:
    """``x`` (N, C, H, W) with ``pad`` pixels of ``padding`` on each side, for ``layer`` to read."""
    if padding == "reflect":
        return reflection_pad(x, pad, impl=layer.impl)
    return pad_ref(x, pad, padding)
