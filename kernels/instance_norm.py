"""Instance normalisation with its activation.

For each sample n and channel c, over the H * W pixels::

    mean = sum(x) / HW
    var = sum((x - mean)^2) / HW
    y = act((x - mean) / sqrt(var + eps))

Layout: x and y are (N, C, H, W) in channels_last memory. Without affine parameters a constant added
to a channel changes nothing, which is why a convolution in front needs no bias.

Bytes: reading x twice (statistics, then normalisation) and writing y once is 3 * x.nbytes forward;
backward reads x and dy twice and writes dx, 5 * x.nbytes.
"""

import torch

ACTIVATIONS = ("none", "relu", "leaky_relu")


def instance_norm_ref(
    x: torch.Tensor, act: str = "none", slope: float = 0.2, eps: float = 1e-5
) -> torch.Tensor:
    """Instance norm without affine parameters, then an activation, in plain PyTorch.

    Args:
        x: (N, C, H, W), floating point. bf16 and fp16 are computed in fp32.
        act: ``none``, ``relu`` or ``leaky_relu``.
        slope: of leaky_relu for negative values.
        eps: added to the variance.

    Returns:
        (N, C, H, W) in the dtype and memory format of ``x``.

    Raises:
        ValueError: ``act`` is none of the three.

    Source: Ulyanov et al., Instance Normalization (2016). ``F.instance_norm`` is not used: on a CPU
    its backward is wrong for N = 1 with a channels_last gradient (torch 2.13).
    """
    if act not in ACTIVATIONS:
        raise ValueError(f"act={act!r}: not one of {', '.join(ACTIVATIONS)}")
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    var, mean = torch.var_mean(wide, dim=(2, 3), correction=0, keepdim=True)
    y = (wide - mean) * torch.rsqrt(var + eps)
    if act == "relu":
        y = torch.relu(y)
    elif act == "leaky_relu":
        y = torch.nn.functional.leaky_relu(y, slope)
    return y.to(x.dtype)
