"""What fixed images show about a run: previews, and PSNR where the truth is known."""

import torch

from fastcyclegan.data.images import to_uint8
from fastcyclegan.data.toy import psnr as psnr_of_images
from fastcyclegan.models import Network


def psnr(images: torch.Tensor, truth: torch.Tensor, pixel_range: str = "tanh") -> float:
    """Peak signal-to-noise ratio in dB, the mean over images.

    Args:
        images, truth: (N, C, H, W); rounded to 8 bits first, as a written image is.
        pixel_range: of both.
    """
    written, wanted = (to_uint8(x, pixel_range).cpu().numpy() for x in (images, truth))
    return float(psnr_of_images(written, wanted).mean())


@torch.no_grad()
def preview_rows(
    G_A: Network, G_B: Network, real_A: torch.Tensor, real_B: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The fixed images through both generators, by label, each (N, C, H, W) on the CPU.

    For each domain: real, fake, rec(onstructed) and, where channels agree, idt (the generator that
    makes this domain, applied to it).
    """
    rows = {}
    for source, target, there, back, real in (
        ("A", "B", G_A, G_B, real_A),
        ("B", "A", G_B, G_A, real_B),
    ):
        fake = each(there, real)
        rows |= {f"real_{source}": real, f"fake_{target}": fake, f"rec_{source}": each(back, fake)}
        if real.shape[1] == fake.shape[1]:
            rows[f"idt_{target}"] = each(back, real)
    return {label: images.float().cpu() for label, images in rows.items()}


@torch.no_grad()
def each(net: Network, images: torch.Tensor) -> torch.Tensor:
    """``net`` in eval mode over (N, C, H, W) images one by one: memory does not grow with N."""
    training = net.training
    net.eval()
    try:
        return torch.cat([net(image) for image in images.split(1)])
    finally:
        net.train(training)
