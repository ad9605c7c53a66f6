"""Images from a DCGAN's generator: noise of a seed, walks through it, and what G makes of it."""

import torch

from fastcyclegan.kernels.philox import FIXED_NOISE, normal_ref
from fastcyclegan.models.network import Network

BATCH = 64


def fixed_noise(seed: int, count: int, nz: int) -> torch.Tensor:
    """(count, nz) float32 on the CPU; each row depends on the seed and its place alone.

    It is the noise of a training's previews, where ``seed`` is the training's.
    """
    return normal_ref(seed, FIXED_NOISE, torch.arange(count), nz)


def slerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Between rows of ``start`` (share 0) and ``end`` (share 1), (N, nz), along great circles.

    Their lengths change evenly on the way: points on a straight line would be shorter than any
    noise that the generator was trained on. Source: White, Sampling Generative Networks (2016).
    """
    lengths = [x.norm(dim=1, keepdim=True) for x in (start, end)]
    units = [x / length.clamp_min(1e-12) for x, length in zip((start, end), lengths, strict=True)]
    angle = torch.acos((units[0] * units[1]).sum(1, keepdim=True).clamp(-1, 1))
    sine = torch.sin(angle)
    turned = torch.zeros_like(start)
    for part, unit in zip((1 - share, share), units, strict=True):
        # where both directions are one, the great circle is a straight line
        turned += torch.where(sine < 1e-6, part, torch.sin(part * angle) / sine) * unit
    return turned * ((1 - share) * lengths[0] + share * lengths[1])


@torch.no_grad()
def generate(net: Network, z: torch.Tensor) -> torch.Tensor:
    """(N, C, size, size) fp32 on the CPU of the noise ``z`` (N, nz), by ``net`` in eval mode."""
    training, device = net.training, next(net.parameters()).device
    net.eval()
    try:
        parts = z.to(device)[..., None, None].split(BATCH)
        return torch.cat([net(part).float().cpu() for part in parts])
    finally:
        net.train(training)
