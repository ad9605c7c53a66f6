"""Batch normalisation in training over the batches of several processes, as if they were one.

Process r has n_r = N * H * W pixels per channel, their mean m_r, and M2_r, the sum of the squares
of their distances from it. From those of all processes (Chan et al.)::

    n = sum(n_r),   mean = sum(n_r * m_r) / n,   var = sum(M2_r + n_r * (m_r - mean)^2) / n

The rest of forward is :mod:`fastcyclegan.kernels.batch_norm`. In backward, with g the gradient in
front of the activation and both means over the pixels of all processes::

    dx = rstd * weight * (g - mean(g) - xhat * mean(g * xhat))

dweight = sum(g * xhat) and dbias = sum(g) are of this process alone: a step adds up the gradients
of all processes anyway, and what each differentiates is a loss of its own images.

Two messages per call, of 2 C + 1 and of 2 C numbers. The local statistics, sums and passes over
images are the kernels of the other batch norm. There is no second derivative.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from fastcyclegan.distributed import of_all, sum_of_all
from fastcyclegan.kernels.batch_norm import (
    _as_one,
    _batch_norm_fwd,
    _batch_norm_stats,
    _check_options,
)
from fastcyclegan.kernels.dispatch import use_triton, wide_dtype
from fastcyclegan.kernels.instance_norm_bwd import launch_apply, launch_sums
from fastcyclegan.kernels.norm_config import batch_config


def _statistics(x: torch.Tensor, triton: bool) -> torch.Tensor:
    """(2 C + 1,): mean and M2 of each channel, then the number of pixels."""
    count = x.numel() // x.shape[1]
    if triton:
        mean, rstd = _batch_norm_stats(x, None, None, 0.0, 0.0)
        m2 = count / rstd.square()
    else:
        wide = x.to(wide_dtype(x.dtype))
        var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        m2 = count * var
    return torch.cat([mean, m2, mean.new_full((1,), count)])


def combine(statistics: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mean (C,), M2 (C,) and number () of all pixels, from (processes, 2 C + 1), by Chan's formula.

    Always in the same order, so that all processes have the same bits. Without pixels, whatever a
    process says of them is left out.
    """
    count = statistics[:, -1:]
    means, m2s = torch.where(count > 0, statistics[:, :-1], 0).chunk(2, dim=1)
    total = count.sum()
    mean = (count * means).sum(0) / total.clamp(min=1)
    return mean, (m2s + count * (means - mean).square()).sum(0), total


def _column(t: torch.Tensor) -> torch.Tensor:
    return t[:, None, None]


def _standard(x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor) -> torch.Tensor:
    return (x.to(mean.dtype) - _column(mean)) * _column(rstd)


def _affine(
    xhat: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    z = xhat if weight is None else xhat * _column(weight)
    return z if bias is None else z + _column(bias)


def _activate(z: torch.Tensor, act: str, slope: float) -> torch.Tensor:
    if act == "relu":
        return torch.relu(z)
    return torch.where(z > 0, z, slope * z) if act == "leaky_relu" else z


def _in_front(dy, x, weight, bias, mean, rstd, act, slope) -> tuple[torch.Tensor, torch.Tensor]:
    """g and xhat, (N, C, H, W) in the dtype of the statistics."""
    g, xhat = dy.to(mean.dtype), _standard(x, mean, rstd)
    if act == "none":
        return g, xhat
    z = _affine(xhat, weight, bias)
    return torch.where(z > 0, g, 0.0 if act == "relu" else slope * g), xhat


@torch.library.custom_op("fastcyclegan::batch_norm_sums_bwd", mutates_args=())
def _sums(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    act: str,
    slope: float,
) -> torch.Tensor:
    """(2, C): the sums of g and of g * xhat over this process's pixels."""
    if not x.numel():
        return mean.new_zeros((2, x.shape[1]))
    given = (_as_one(dy), None, _as_one(x), None, mean, rstd, weight, bias, act, slope, 0)
    config = batch_config(x.shape[1], x.element_size())
    return launch_sums(*given, config).sum(2).squeeze(1)


@_sums.register_fake
def _(dy, x, weight, bias, mean, rstd, act, slope):
    return mean.new_empty((2, x.shape[1]))


@torch.library.custom_op("fastcyclegan::batch_norm_apply_bwd", mutates_args=())
def _apply(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    act: str,
    slope: float,
    means: torch.Tensor,
) -> torch.Tensor:
    """dx, given (2, C): the means of g and of g * xhat over all processes' pixels."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    if not x.numel():
        return dx
    given = (_as_one(dy), None, _as_one(x), None, mean, rstd, weight, bias, act, slope, 0)
    # the kernel divides by the pixels that it sees
    part = means * (x.numel() // x.shape[1])
    launch_apply(*given, part[:, None, None], _as_one(dx), None, None)
    return dx


@_apply.register_fake
def _(dy, x, weight, bias, mean, rstd, act, slope, means):
    return torch.empty_like(x, memory_format=torch.channels_last)


class _Normalise(torch.autograd.Function):
    """y from x and the statistics of all processes, of which x is followed by backward as well."""

    @staticmethod
    def forward(ctx, x, weight, bias, mean, rstd, total, act, slope, triton):
        ctx.save_for_backward(x, weight, bias, mean, rstd, total)
        ctx.how = act, slope, triton
        if triton:
            return _batch_norm_fwd(x, weight, bias, mean, rstd, True, act, slope)
        z = _affine(_standard(x, mean, rstd), weight, bias)
        return _activate(z, act, slope).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, bias, mean, rstd, total = ctx.saved_tensors
        act, slope, triton = ctx.how
        given = (dy, x, weight, bias, mean, rstd, act, slope)
        if triton:
            own = _sums(*given)
            dx = _apply(*given, sum_of_all(own) / total)
        else:
            g, xhat = _in_front(*given)
            own = torch.stack([g.sum((0, 2, 3)), (g * xhat).sum((0, 2, 3))])
            mean_g, mean_gx = sum_of_all(own) / total
            scale = rstd if weight is None else rstd * weight
            dx = _column(scale) * (g - _column(mean_g) - xhat * _column(mean_gx))
            dx = dx.to(x.dtype)
        dweight = None if weight is None else own[1].to(weight.dtype)
        dbias = None if bias is None else own[0].to(bias.dtype)
        return dx, dweight, dbias, *(None,) * 6


def sync_batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    impl: str | None = None,
) -> torch.Tensor:
    """Batch norm in training over the batches of all processes of the default process group.

    All of them must call it, and its backward, in the same order.

    Args:
        x: (N, C, H, W), this process's images. Arguments, layouts, result and errors are those of
            :func:`fastcyclegan.kernels.batch_norm.batch_norm`; all processes get the same running
            statistics. One without images (N = 0) adds nothing to them.
    """
    triton = use_triton(x, impl)
    _check_options(x, running_mean, running_var, True, act)
    mean, m2, total = combine(of_all(_statistics(x.detach(), triton)))
    rstd = torch.rsqrt(m2 / total.clamp(min=1) + eps)
    if running_mean is not None:
        with torch.no_grad():
            for running, new in ((running_mean, mean), (running_var, m2 / (total - 1))):
                moved = (1 - momentum) * running + momentum * new
                running.copy_(torch.where(total > 0, moved, running))
    return _Normalise.apply(x, weight, bias, mean, rstd, total, act, slope, triton)
