"""The losses of CycleGAN, under the names that junyanz/pytorch-CycleGAN-and-pix2pix prints."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from fastcyclegan.pixel_range import PIXEL_RANGES

NAMES = ("D_A", "G_A", "cycle_A", "idt_A", "D_B", "G_B", "cycle_B", "idt_B")
PENALTY_WEIGHT = 10.0


def gan_loss(logits: torch.Tensor, real: bool, mode: str = "lsgan") -> torch.Tensor:
    """How far ``logits`` are from saying ``real``, or its opposite; no sigmoid in the network.

    lsgan: mean of (logits - t)^2 with t = 1 for real, 0 for fake. vanilla: mean cross entropy of
    sigmoid(logits) with t. wgangp: -mean(logits) for real, +mean for fake.

    Args:
        logits: (N, 1, h, w) of any floating dtype; computed in at least fp32.
        real: what they should say.
        mode: ``lsgan``, ``vanilla`` or ``wgangp``.

    Raises:
        ValueError: another mode.

    Source: Mao et al., Least Squares GAN (2017); Goodfellow et al., GAN (2014); Arjovsky et al.,
    Wasserstein GAN (2017).
    """
    wide = at_least_fp32(logits)
    if mode == "lsgan":
        return ((wide - 1) if real else wide).square().mean()
    if mode == "vanilla":
        target = torch.ones_like(wide) if real else torch.zeros_like(wide)
        return F.binary_cross_entropy_with_logits(wide, target)
    if mode == "wgangp":
        return -wide.mean() if real else wide.mean()
    raise ValueError(f"mode={mode!r} is none of lsgan, vanilla, wgangp")


def gradient_penalty(
    judge: Callable[[torch.Tensor], torch.Tensor],
    real: torch.Tensor,
    fake: torch.Tensor,
    share: torch.Tensor,
    pixel_range: str = "tanh",
) -> torch.Tensor:
    """PENALTY_WEIGHT * mean over the samples of (|d sum(judge(x)) / dx|_2 - 1)^2.

    x mixes a real and a fake image: ``share * real + (1 - share) * fake``. The result can be
    differentiated by the weights of ``judge``, whose backward is then differentiated itself: it
    must be plain PyTorch, neither compiled nor made of custom ops.

    Args:
        judge: (N, C, H, W) to (N, 1, h, w) logits; their sum is what has slope 1, as in JZ.
        real, fake: (N, C, H, W) of one shape; their gradients are not followed.
        share: (N,) in [0, 1].
        pixel_range: of the images; the slope is per unit of [-1, 1] whatever it is.

    Source: Gulrajani et al., Improved Training of Wasserstein GANs (2017).
    """
    share = share.to(real.dtype).view(-1, 1, 1, 1)
    mixed = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()
    logits = at_least_fp32(judge(mixed))
    (slope,) = torch.autograd.grad(logits.sum(), mixed, create_graph=True)
    slope = at_least_fp32(slope) * PIXEL_RANGES[pixel_range].half
    lengths = torch.linalg.vector_norm(slope.flatten(1), dim=1)
    return PENALTY_WEIGHT * (lengths - 1).square().mean()


def l1_loss(image: torch.Tensor, target: torch.Tensor, pixel_range: str = "tanh") -> torch.Tensor:
    """Mean absolute difference of two (N, C, H, W) images, computed in at least fp32.

    In units of [-1, 1] whatever their ``pixel_range``, so that weights of losses mean the same.
    """
    difference = (at_least_fp32(image) - at_least_fp32(target)).abs().mean()
    half = PIXEL_RANGES[pixel_range].half
    return difference if half == 1.0 else difference / half


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """``x`` in fp32, or unchanged if it is fp64."""
    return x if x.dtype == torch.float64 else x.float()
