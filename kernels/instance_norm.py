"""Instance normalisation with what stands around it: activation, residual, reflection padding.

For each sample n and channel c, over the HW = H * W pixels::

    mean = sum(x) / HW,   var = sum((x - mean)^2) / HW,   rstd = 1 / sqrt(var + eps)
    xhat = (x - mean) * rstd
    z = xhat [* weight + bias] [+ residual]
    y = reflect_pad(act(z), pad)

Backward is in ``instance_norm_bwd.py``.

Statistics are those of ``norm_stats.py``. Without affine parameters a constant added to a channel
changes nothing, which is why a convolution in front needs no bias.

Layout: x and y are channels_last; residual and dy need only their channels next to each other.

Bytes, in units of x.nbytes and without the halo: forward reads x twice and writes y: 3, with a
residual 4. Backward reads x and dy twice and writes dx: 5. A residual adds dresidual, 6, and its
skip gradient, read twice, 8. A ReLU behind the sum reads y twice: 2 more.
"""

from __future__ import annotations

import torch

from fastcyclegan.kernels.dispatch import (
    accumulator,
    check_channels_last,
    check_image,
    check_per_channel,
    jit,
    next_power_of_2,
    on_device,
    tl,
    use_triton,
    wide_dtype,
)
from fastcyclegan.kernels.instance_norm_bwd import (
    activate,
    dense_channels,
    instance_norm_bwd,
    spatial_strides,
)
from fastcyclegan.kernels.norm_config import apply_config, bounds_of, reduce_config, runs_of, split
from fastcyclegan.kernels.norm_stats import combine_runs, launch_stats
from fastcyclegan.kernels.reflection_pad import (
    check_pixels,
    check_reflection,
    pad_ref,
    reflect_index,
)

ACTIVATIONS = ("none", "relu", "leaky_relu")


def instance_norm_ref(
    x: torch.Tensor,
    act: str = "none",
    slope: float = 0.2,
    eps: float = 1e-5,
    *,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    residual_relu: bool = False,
    pad: int = 0,
) -> torch.Tensor:
    """Instance norm in plain PyTorch, in at least fp32; arguments as of :func:`instance_norm`.

    Returns:
        (N, C, H, W) in the dtype and memory format of ``x``; with ``pad`` > 0
        (N, C, H + 2 pad, W + 2 pad), channels_last.

    Raises:
        ValueError: options that contradict each other, or a reflection wider than the image.

    Source: Ulyanov et al., Instance Normalization (2016). ``F.instance_norm`` is not used: on a CPU
    its backward is wrong for N = 1 with a channels_last gradient (torch 2.13).
    """
    _check_options(x, act, residual, residual_relu)
    # Channels are last in shape as well: compiled code lays out by shape what it keeps on the way.
    wide = x.to(wide_dtype(x.dtype)).permute(0, 2, 3, 1)
    var, mean = torch.var_mean(wide, dim=(1, 2), correction=0, keepdim=True)
    y = (wide - mean) * torch.rsqrt(var + eps)
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    if residual is not None:
        y = y + residual.permute(0, 2, 3, 1)
    if act == "relu" or residual_relu:
        y = torch.relu(y)
    elif act == "leaky_relu":
        y = torch.nn.functional.leaky_relu(y, slope)
    y = y.to(x.dtype).permute(0, 3, 1, 2)
    return pad_ref(y, pad) if pad else y


def _check_options(
    x: torch.Tensor, act: str, residual: torch.Tensor | None, residual_relu: bool
) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"act={act!r}: not one of {', '.join(ACTIVATIONS)}")
    if residual_relu and residual is None:
        raise ValueError('residual_relu without a residual: use act="relu"')
    if residual is not None and act != "none":
        raise ValueError(f"act={act!r} with a residual: only residual_relu can follow the sum")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(
            f"residual is {tuple(residual.shape)}, x is {tuple(x.shape)}: give one of its shape"
        )


@jit
def _load_reflected(base, offs_p, end, mask_c, H, W, stride_h, stride_w, WP, PAD: tl.constexpr):
    """The pixels that a padded image shows at ``offs_p``; ``base`` points at pixel (0, 0)."""
    h = reflect_index(offs_p // WP - PAD, H).to(tl.int64)
    w = reflect_index(offs_p % WP - PAD, W).to(tl.int64)
    mask = (offs_p < end)[:, None] & mask_c[None, :]
    return tl.load(base + (h * stride_h + w * stride_w)[:, None], mask=mask, other=0.0)


@jit
def _instance_norm_fwd_kernel(
    x_ptr,  # (N, C, H, W), channels_last
    residual_ptr,  # (N, C, H, W), channels next to each other, or None
    weight_ptr,  # (C,) or None
    bias_ptr,  # (C,) or None
    part_mean_ptr,  # (N, tiles, C)
    part_m2_ptr,  # (N, tiles, C)
    y_ptr,  # (N, C, H + 2 PAD, W + 2 PAD), channels_last
    mean_ptr,  # (N, C)
    rstd_ptr,  # (N, C)
    H,
    W,
    C,
    tiles,
    tile_pixels,
    chunk,  # padded pixels of one program
    stride_rn,
    stride_rh,
    stride_rw,
    ACT: tl.constexpr,
    SLOPE: tl.constexpr,
    EPS: tl.constexpr,
    PAD: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    pid = tl.program_id(0)
    HW = H * W
    WP = W + 2 * PAD
    pixels = (H + 2 * PAD) * WP
    chunks = runs_of(pixels, chunk)
    c_blocks = tl.cdiv(C, BLOCK_C)
    stride_xh = tl.cast(W, tl.int64) * C
    n = (pid // (c_blocks * chunks)).to(tl.int64)
    start, end = bounds_of(pid // c_blocks % chunks, chunk, pixels)
    offs_c = (pid % c_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    x_base = x_ptr + n * HW * C + offs_c[None, :]
    y_base = y_ptr + n * pixels * C + offs_c[None, :]
    block = tl.arange(0, BLOCK_P)
    # A block ahead, so that it is on its way while the statistics are combined.
    x = _load_reflected(x_base, start + block, end, mask_c, H, W, stride_xh, C, WP, PAD)
    if residual_ptr is not None:
        r_base = residual_ptr + n * stride_rn + offs_c[None, :]
        r = _load_reflected(r_base, start + block, end, mask_c, H, W, stride_rh, stride_rw, WP, PAD)
    mean, m2 = combine_runs(
        part_mean_ptr, part_m2_ptr, n, offs_c, HW, C, tiles, tile_pixels, BLOCK_T, ACC
    )
    rstd = 1.0 / tl.sqrt(m2 / HW + EPS)
    if start == 0:
        tl.store(mean_ptr + n * C + offs_c, mean, mask=mask_c)
        tl.store(rstd_ptr + n * C + offs_c, rstd, mask=mask_c)
    for p in range(start, end, BLOCK_P):
        offs_p = p + block
        z = (x.to(ACC) - mean[None, :]) * rstd[None, :]
        x = _load_reflected(x_base, offs_p + BLOCK_P, end, mask_c, H, W, stride_xh, C, WP, PAD)
        if weight_ptr is not None:
            z *= tl.load(weight_ptr + offs_c, mask=mask_c, other=0.0).to(ACC)[None, :]
        if bias_ptr is not None:
            z += tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(ACC)[None, :]
        if residual_ptr is not None:
            z += r.to(ACC)
            r = _load_reflected(
                r_base, offs_p + BLOCK_P, end, mask_c, H, W, stride_rh, stride_rw, WP, PAD
            )
        y = activate(z, ACT, SLOPE).to(y_ptr.dtype.element_ty)
        mask = (offs_p < end)[:, None] & mask_c[None, :]
        tl.store(y_base + (offs_p.to(tl.int64) * C)[:, None], y, mask=mask)


def _check(x, weight, bias, residual, act, residual_relu, pad) -> None:
    check_image(x, "x")
    _check_options(x, act, residual, residual_relu)
    check_reflection(x, pad)
    check_pixels(x, pad)
    check_channels_last(x, "x")
    check_per_channel(x, {"weight": weight, "bias": bias})
    if residual is not None and residual.device != x.device:
        raise ValueError(f"residual is on {residual.device}, x on {x.device}")
    if residual is not None and residual.dtype != x.dtype:
        raise TypeError(f'residual is {residual.dtype}, x is {x.dtype}: cast it, or use impl="ref"')


def _outputs(x: torch.Tensor, pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, mean and rstd, uninitialised."""
    n, c, h, w = x.shape
    y = torch.empty(
        (n, c, h + 2 * pad, w + 2 * pad),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    mean, rstd = (x.new_empty((n, c), dtype=wide_dtype(x.dtype)) for _ in range(2))
    return y, mean, rstd


def _launch(x, weight, bias, residual, act, slope, pad, eps, y, mean, rstd) -> None:
    n, c, h, w = x.shape
    part, tile_pixels = launch_stats(x, reduce_config(c, x.element_size()))
    config = apply_config(c, x.element_size())
    groups = n * -(-c // config.block_c)
    chunks, chunk = split((h + 2 * pad) * (w + 2 * pad), groups, config)
    with on_device(x):
        _instance_norm_fwd_kernel[(groups * chunks,)](
            *(x, residual, weight, bias, part[0], part[1], y, mean, rstd),
            *(h, w, c, part.shape[2], tile_pixels, chunk),
            *spatial_strides(residual),
            ACT=act,
            SLOPE=slope,
            EPS=eps,
            PAD=pad,
            ACC=accumulator(x.dtype),
            BLOCK_T=next_power_of_2(part.shape[2]),
            BLOCK_P=config.block_p,
            BLOCK_C=config.block_c,
            num_warps=config.num_warps,
            # Left to itself ptxas spills there (sm_100), to fit one more block on a multiprocessor.
            maxnreg=128 if residual is not None and pad and x.dtype == torch.float16 else None,
        )


@torch.library.custom_op("fastcyclegan::instance_norm_fwd", mutates_args=())
def _instance_norm_fwd(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    act: str,
    slope: float,
    residual_relu: bool,
    pad: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check(x, weight, bias, residual, act, residual_relu, pad)
    y, mean, rstd = _outputs(x, pad)
    if x.numel():
        residual = None if residual is None else dense_channels(residual)
        act = "relu" if residual_relu else act
        _launch(x, weight, bias, residual, act, slope, pad, eps, y, mean, rstd)
    return y, mean, rstd


@_instance_norm_fwd.register_fake
def _(x, weight, bias, residual, act, slope, residual_relu, pad, eps):
    _check(x, weight, bias, residual, act, residual_relu, pad)
    return _outputs(x, pad)


def _setup_context(ctx, inputs, output) -> None:
    x, weight, bias, residual, act, slope, residual_relu, pad, _ = inputs
    y, mean, rstd = output
    ctx.save_for_backward(x, y if residual_relu else None, mean, rstd, weight, bias)
    ctx.options = act, slope, residual is not None, pad
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)


def _gradients(ctx, dy: torch.Tensor | None, dskip: torch.Tensor | None) -> tuple:
    """Gradients of the nine inputs of the forward op; the options have none."""
    if dy is None and dskip is None:
        return (None,) * 9
    x, y, mean, rstd, weight, bias = ctx.saved_tensors
    act, slope, has_residual, pad = ctx.options
    if dy is None:
        dy = torch.zeros_like(_outputs(x, pad)[0])
    dx, dresidual, dweight, dbias = instance_norm_bwd(
        dy, dskip, x, y, mean, rstd, weight, bias, act, slope, has_residual, pad
    )
    return (
        dx,
        None if weight is None else dweight,
        None if bias is None else dbias,
        dresidual if has_residual else None,
        *(None,) * 5,
    )


_instance_norm_fwd.register_autograd(
    lambda ctx, dy, dmean, drstd: _gradients(ctx, dy, None), setup_context=_setup_context
)


class _NormPad(torch.autograd.Function):
    """The padded output and, sharing its memory, the interior; one op folds both gradients."""

    @staticmethod
    def forward(ctx, *inputs):
        output = _instance_norm_fwd(*inputs)
        _setup_context(ctx, inputs, output)
        pad = inputs[7]
        y_pad = output[0]
        # not a view to autograd: as one, compiled code would add its gradient to that of y_pad by
        # passes of its own
        return y_pad, y_pad.data[:, :, pad:-pad, pad:-pad]

    @staticmethod
    def backward(ctx, dy, dskip):
        return _gradients(ctx, dy, dskip)


def instance_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.2,
    residual: torch.Tensor | None = None,
    residual_relu: bool = False,
    pad: int = 0,
    eps: float = 1e-5,
    impl: str | None = None,
) -> torch.Tensor:
    """Instance norm, then activation or residual, then reflection padding, in two kernels.

    Args:
        x: (N, C, H, W); for the kernels channels_last, fp32, bf16, fp16 or fp64.
        weight, bias: (C,), scale and shift of the normalised image.
        act: ``none``, ``relu`` or ``leaky_relu``.
        slope: of leaky_relu for negative values.
        residual: (N, C, H, W), added behind the norm; only with ``act="none"``.
        residual_relu: a ReLU behind that addition.
        pad: pixels of reflection on each side, less than H and W.
        eps: added to the variance.
        impl: ``ref``, ``triton``, or None: Triton on CUDA, the reference elsewhere.

    Returns:
        (N, C, H + 2 pad, W + 2 pad) in the dtype of ``x``, channels_last if ``x`` is.

    Raises:
        ValueError: a layout, shape, combination or ``impl`` that is not supported.
        TypeError: a dtype that the kernels lack.
        RuntimeError: kernels are needed and triton is not installed.
    """
    if use_triton(x, impl):
        return _instance_norm_fwd(x, weight, bias, residual, act, slope, residual_relu, pad, eps)[0]
    affine = {"weight": weight, "bias": bias}
    around = {"residual": residual, "residual_relu": residual_relu, "pad": pad}
    return instance_norm_ref(x, act, slope, eps, **affine, **around)


def instance_norm_pad(
    x: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    act: str = "none",
    slope: float = 0.2,
    residual: torch.Tensor | None = None,
    residual_relu: bool = False,
    pad: int = 1,
    eps: float = 1e-5,
    impl: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`instance_norm` with ``pad`` >= 1, and the result without padding beside it.

    The first is for the next convolution, the second for the skip connection around it. From the
    kernels the second lies in the memory of the first (write into neither), and backward folds both
    gradients in one kernel.

    Returns:
        (N, C, H + 2 pad, W + 2 pad) and (N, C, H, W).

    Raises:
        As :func:`instance_norm`; ValueError also for ``pad`` < 1.
    """
    if pad < 1:
        raise ValueError(f"pad={pad}: needs 1 or more; without padding use instance_norm")
    if use_triton(x, impl):
        return _NormPad.apply(x, weight, bias, residual, act, slope, residual_relu, pad, eps)
    affine = {"weight": weight, "bias": bias}
    around = {"residual": residual, "residual_relu": residual_relu}
    y = instance_norm_ref(x, act, slope, eps, **affine, **around)
    return pad_ref(y, pad), y
