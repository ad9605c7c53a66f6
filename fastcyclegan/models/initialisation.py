"""How weights begin: the four ways of junyanz/pytorch-CycleGAN-and-pix2pix."""

import torch
from torch import nn

INITS = ("normal", "xavier", "kaiming", "orthogonal")


@torch.no_grad()
def init_weights(
    net: nn.Module, gain: float, generator: torch.Generator, kind: str = "normal"
) -> None:
    """Draw every weight anew and set every bias to 0, as JZ does.

    Convolutions: ``normal`` is N(0, gain^2); ``xavier`` is N(0, s^2) with s = gain sqrt(2 /
    (fan_in + fan_out)); ``kaiming`` s = sqrt(2 / fan_in), whatever the gain; ``orthogonal`` is gain
    times a matrix with orthonormal rows or columns. Batch norms: scale N(1, gain^2), shift 0.

    Args:
        net: on the CPU, so that a seed means the same on every device.
        gain: see above.
        generator: a CPU generator.
        kind: one of INITS.

    Raises:
        ValueError: another ``kind``.

    Sources: Glorot and Bengio (2010), He et al. (2015), Saxe et al. (2013).
    """
    if kind not in INITS:
        raise ValueError(f"init_type={kind!r}: not one of {', '.join(INITS)}")
    for name, parameter in net.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif parameter.ndim == 1:
            parameter.normal_(1.0, gain, generator=generator)
        elif kind == "normal":
            parameter.normal_(0.0, gain, generator=generator)
        else:
            parameter.copy_(_drawn(parameter, gain, generator, kind))


def _drawn(like: torch.Tensor, gain: float, generator: torch.Generator, kind: str) -> torch.Tensor:
    # torch's functions view the weight as a matrix, which channels_last forbids
    weight = torch.empty(like.shape, dtype=like.dtype)
    if kind == "xavier":
        return nn.init.xavier_normal_(weight, gain, generator=generator)
    if kind == "kaiming":
        return nn.init.kaiming_normal_(weight, generator=generator)
    return nn.init.orthogonal_(weight, gain, generator=generator)
