"""The losses of CycleGAN, under the names that junyanz/pytorch-CycleGAN-and-pix2pix prints."""

import torch

NAMES = ("D_A", "G_A", "cycle_A", "idt_A", "D_B", "G_B", "cycle_B", "idt_B")


def gan_loss(logits: torch.Tensor, real: bool) -> torch.Tensor:
    """Least squares: mean of (logits - t)^2 with t = 1 for real, 0 for fake; no sigmoid.

    Args:
        logits: (N, 1, h, w) of any floating dtype; computed in at least fp32.

    Source: Mao et al., Least Squares GAN (2017).
    """
    wide = at_least_fp32(logits)
    return ((wide - 1) if real else wide).square().mean()


def l1_loss(image: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of two (N, C, H, W) images, computed in at least fp32."""
    return (at_least_fp32(image) - at_least_fp32(target)).abs().mean()


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """``x`` in fp32, or unchanged if it is fp64."""
    return x if x.dtype == torch.float64 else x.float()
