"""Batch normalisation with its activation.

For each channel c, over the M = N * H * W pixels of all samples::

    mean = sum(x) / M,   var = sum((x - mean)^2) / M,   rstd = 1 / sqrt(var + eps)
    y = act((x - mean) * rstd [* weight + bias])
    running_mean = (1 - momentum) * running_mean + momentum * mean
    running_var = (1 - momentum) * running_var + momentum * var * M / (M - 1)

Outside training, mean and var are the running ones, which stay. With g the gradient in front of the
activation::

    dweight = sum(g * xhat),   dbias = sum(g)
    dx = rstd * weight * (g - dbias / M - xhat * dweight / M),   outside training rstd * weight * g

In channels_last the batch is one image of N * H rows, so that statistics and gradients are taken by
the kernels of the instance norm, with its shifted sums and fixed orders. An op of its own takes the
statistics and moves the running ones, since an op with a gradient may change nothing in place.

Layout: x and y are channels_last; dy may have any. Bytes, in units of x.nbytes: forward reads x
twice and writes y: 3, outside training 2. Backward reads x and dy twice and writes dx: 5.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fastcyclegan.kernels.dispatch import (
    LARGEST,
    accumulator,
    check_channels_last,
    check_image,
    check_per_channel,
    check_rank,
    jit,
    next_power_of_2,
    on_device,
    tl,
    use_triton,
    wide_dtype,
)
from fastcyclegan.kernels.instance_norm import ACTIVATIONS
from fastcyclegan.kernels.instance_norm_bwd import (
    activate,
    dense_channels,
    launch_apply,
    launch_sums,
)
from fastcyclegan.kernels.norm_config import apply_config, batch_config
from fastcyclegan.kernels.norm_stats import combine_runs, launch_stats


def batch_norm_ref(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
) -> torch.Tensor:
    """Batch norm in plain PyTorch; the arguments are those of :func:`batch_norm`.

    bf16 and fp16 are computed in fp32 and rounded once.

    Returns:
        (N, C, H, W) in the dtype and memory format of ``x``.

    Source: Ioffe and Szegedy, Batch Normalization (2015).
    """
    _check_options(x, running_mean, running_var, training, act)
    wide = wide_dtype(x.dtype)
    affine = (None if t is None else t.to(wide) for t in (weight, bias))
    y = F.batch_norm(x.to(wide), running_mean, running_var, *affine, training, momentum, eps)
    if act == "relu":
        y = torch.relu(y)
    elif act == "leaky_relu":
        y = F.leaky_relu(y, slope)
    return y.to(x.dtype)


def _check_options(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    act: str,
) -> None:
    check_rank(x, "x")
    if act not in ACTIVATIONS:
        raise ValueError(f"act={act!r}: not one of {', '.join(ACTIVATIONS)}")
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean and running_var: give both, or neither")
    if running_mean is None and not training:
        raise ValueError("training=False needs running_mean and running_var")
    for name, t in (("running_mean", running_mean), ("running_var", running_var)):
        if t is not None and t.dtype != wide_dtype(x.dtype):
            raise TypeError(f"{name} is {t.dtype}: must be {wide_dtype(x.dtype)} for {x.dtype}")
    if training and x.numel() == x.shape[1]:
        raise ValueError(f"x is {tuple(x.shape)}: one value per channel has no variance")


@jit
def _batch_norm_finish_kernel(
    part_mean_ptr,  # (tiles, C): mean of each run of pixels
    part_m2_ptr,  # (tiles, C): sum of squares about that mean
    mean_ptr,  # (C,)
    rstd_ptr,  # (C,)
    running_mean_ptr,  # (C,), changed in place, or None
    running_var_ptr,  # (C,), changed in place, or None
    M,  # pixels of all samples
    C,
    tiles,
    tile_pixels,
    MOMENTUM: tl.constexpr,
    EPS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = offs_c < C
    mean, m2 = combine_runs(
        part_mean_ptr, part_m2_ptr, 0, offs_c, M, C, tiles, tile_pixels, BLOCK_T, ACC
    )
    tl.store(mean_ptr + offs_c, mean, mask=mask)
    tl.store(rstd_ptr + offs_c, 1.0 / tl.sqrt(m2 / M + EPS), mask=mask)
    if running_mean_ptr is not None:
        old_mean = tl.load(running_mean_ptr + offs_c, mask=mask)
        old_var = tl.load(running_var_ptr + offs_c, mask=mask)
        var = m2 / (M - 1)
        tl.store(running_mean_ptr + offs_c, (1 - MOMENTUM) * old_mean + MOMENTUM * mean, mask=mask)
        tl.store(running_var_ptr + offs_c, (1 - MOMENTUM) * old_var + MOMENTUM * var, mask=mask)


@jit
def _batch_norm_fwd_kernel(
    x_ptr,  # (N, C, H, W), channels_last
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    mean_ptr,  # (C,)
    rstd_ptr,  # (C,)
    y_ptr,  # (N, C, H, W), channels_last
    M,  # pixels of all samples
    C,
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    c_blocks = tl.cdiv(C, BLOCK_C)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_p = pid // c_blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    mask_c = offs_c < C
    offs = (offs_p.to(tl.int64) * C)[:, None] + offs_c[None, :]
    mask = (offs_p < M)[:, None] & mask_c[None, :]
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(ACC)
    mean = tl.load(mean_ptr + offs_c, mask=mask_c, other=0.0)
    rstd = tl.load(rstd_ptr + offs_c, mask=mask_c, other=0.0)
    # In the order in which backward computes it again, for the same signs.
    z = (x - mean[None, :]) * rstd[None, :]
    if weight_ptr is not None:
        z *= tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0).to(ACC)[None, :]
    if bias_ptr is not None:
        z += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(ACC)[None, :]
    tl.store(y_ptr + offs, activate(z, ACT, SLOPE).to(y_ptr.dtype.element_ty), mask=mask)


def _check(x: torch.Tensor, tensors: dict[str, torch.Tensor | None]) -> None:
    check_image(x, "x")
    check_channels_last(x, "x")
    check_per_channel(x, tensors)
    if x.numel() > LARGEST * x.shape[1]:
        raise ValueError(f'{tuple(x.shape)}: more than {LARGEST} pixels, use impl="ref"')


def _as_one(t: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) as one image (1, C, N * H, W), channels next to each other; a view if it can."""
    n, c, h, w = t.shape
    return dense_channels(t.permute(0, 2, 3, 1).reshape(1, n * h, w, c).permute(0, 3, 1, 2))


def _launch_stats(x, running_mean, running_var, momentum, eps, mean, rstd) -> None:
    _, c, h, w = x.shape
    part, tile_pixels = launch_stats(x, batch_config(c, x.element_size()))
    tiles = part.shape[2]
    block_c = min(next_power_of_2(c), 16)
    with on_device(x):
        _batch_norm_finish_kernel[(-(-c // block_c),)](
            *(part[0], part[1], mean, rstd, running_mean, running_var),
            *(h * w, c, tiles, tile_pixels),
            MOMENTUM=momentum,
            EPS=eps,
            ACC=accumulator(x.dtype),
            BLOCK_T=next_power_of_2(tiles),
            BLOCK_C=block_c,
            num_warps=4,
            # Left to itself ptxas spills there (sm_90), to fit one more block on a multiprocessor.
            maxnreg=128,
        )


def _launch_fwd(x, weight, bias, mean, rstd, act, slope, y) -> None:
    _, c, h, w = x.shape
    config = apply_config(c, x.element_size())
    # 64 bytes per thread: programs are short and many, since nothing is added up in front.
    block_p = 2 * config.block_p
    with on_device(x):
        _batch_norm_fwd_kernel[(-(-c // config.block_c) * -(-h * w // block_p),)](
            *(x, weight, bias, mean, rstd, y),
            *(h * w, c),
            ACT=act,
            SLOPE=slope,
            ACC=accumulator(x.dtype),
            BLOCK_P=block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            # Left to itself ptxas spills there, to fit one more block on a multiprocessor.
            maxnreg=128 if x.dtype == torch.float32 else None,
        )


def _statistics_like(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    c = x.shape[1:2]
    return tuple(x.new_empty(c, dtype=wide_dtype(x.dtype)) for _ in range(2))


@torch.library.custom_op(
    "fastcyclegan::batch_norm_stats", mutates_args=("running_mean", "running_var")
)
def _batch_norm_stats(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean, rstd) of a batch, (C,) each; the running statistics move towards it."""
    _check(x, {"running_mean": running_mean, "running_var": running_var})
    mean, rstd = _statistics_like(x)
    if x.numel():
        _launch_stats(_as_one(x), running_mean, running_var, momentum, eps, mean, rstd)
    return mean, rstd


@_batch_norm_stats.register_fake
def _(x, running_mean, running_var, momentum, eps):
    _check(x, {"running_mean": running_mean, "running_var": running_var})
    return _statistics_like(x)


@torch.library.custom_op("fastcyclegan::batch_norm_fwd", mutates_args=())
def _batch_norm_fwd(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    training: bool,
    act: str,
    slope: float,
) -> torch.Tensor:
    """y, given (C,) ``mean`` and ``rstd``; in training those of ``x``, and backward goes on so."""
    _check(x, {"weight": weight, "bias": bias, "mean": mean, "rstd": rstd})
    y = torch.empty_like(x, memory_format=torch.channels_last)
    if x.numel():
        _launch_fwd(_as_one(x), weight, bias, mean, rstd, act, slope, y)
    return y


@_batch_norm_fwd.register_fake
def _(x, weight, bias, mean, rstd, training, act, slope):
    _check(x, {"weight": weight, "bias": bias, "mean": mean, "rstd": rstd})
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("fastcyclegan::batch_norm_bwd", mutates_args=())
def _batch_norm_bwd(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    training: bool,
    act: str,
    slope: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx, and (2, C): the sums of g and of g * xhat, which are dbias and dweight."""
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    if not x.numel():
        return dx, mean.new_zeros((2, x.shape[1]))
    given = (_as_one(dy), None, _as_one(x), None, mean, rstd, weight, bias, act, slope, 0)
    sums = launch_sums(*given, batch_config(x.shape[1], x.element_size())).sum(2)
    part = sums if training else torch.zeros_like(sums)
    launch_apply(*given, part[:, :, None], _as_one(dx), None, None)
    return dx, sums.squeeze(1)


@_batch_norm_bwd.register_fake
def _(dy, x, weight, bias, mean, rstd, training, act, slope):
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, mean.new_empty((2, x.shape[1]))


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, mean, rstd, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias, mean, rstd)


def _backward(ctx, dy):
    _, weight, bias, _, _ = ctx.saved_tensors
    dx, sums = _batch_norm_bwd(dy, *ctx.saved_tensors, *ctx.options)
    dweight = None if weight is None else sums[1].to(weight.dtype)
    dbias = None if bias is None else sums[0].to(bias.dtype)
    return dx, dweight, dbias, *(None,) * 5


_batch_norm_fwd.register_autograd(_backward, setup_context=_setup_context)


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "none",
    slope: float = 0.2,
    impl: str | None = None,
) -> torch.Tensor:
    """Batch norm, then activation: in training three kernels, else one and PyTorch's over (C,).

    Args:
        x: (N, C, H, W); for the kernels channels_last, fp32, bf16, fp16 or fp64.
        weight, bias: (C,), scale and shift of the normalised batch.
        running_mean, running_var: (C,), fp32, for fp64 ``x`` fp64. Training changes them in place,
            the variance without bias; a batch of no samples leaves them. Otherwise they are used.
        training: whether to normalise by the statistics of the batch.
        momentum: how far the running statistics move towards those of the batch, 0 to 1.
        eps: added to the variance.
        act: ``none``, ``relu`` or ``leaky_relu``.
        slope: of leaky_relu for negative values.
        impl: ``ref``, ``triton``, or None: Triton on CUDA, the reference elsewhere.

    Returns:
        (N, C, H, W) in the dtype of ``x``, channels_last if ``x`` is.

    Raises:
        ValueError: a layout, shape, combination or ``impl`` that is not supported; training on one
            value per channel.
        TypeError: a dtype that is not supported.
        RuntimeError: kernels are needed and triton is not installed.
    """
    running = (running_mean, running_var)
    if not use_triton(x, impl):
        given = {"training": training, "momentum": momentum, "eps": eps, "act": act}
        return batch_norm_ref(x, weight, bias, *running, **given, slope=slope)
    _check_options(x, *running, training, act)
    if training:
        mean, rstd = _batch_norm_stats(x.detach(), *running, momentum, eps)
    else:
        mean, rstd = running_mean.detach().clone(), torch.rsqrt(running_var.detach() + eps)
    return _batch_norm_fwd(x, weight, bias, mean, rstd, training, act, slope)
